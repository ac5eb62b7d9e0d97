"""Files of every format, and what is read of them."""

import types

import pyarrow as pa
import pytest
from array_record.python import array_record_module
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from xformer.data.formats.base import SourceOptions
from xformer.data.sources import BadRows, open_file, read_documents


def _read(path, start=0, stop=None, **options):
    """Reads a file: its texts, what was counted, and its places."""
    bad_rows = BadRows()
    file = open_file(path, SourceOptions(**options))
    found = list(read_documents(file, bad_rows, start, stop))
    for raw, text in found:
        if raw.place is not None:
            assert file.parse(file.fetch(raw.place)) == text
    return types.SimpleNamespace(
        texts=[text for _, text in found],
        rows=bad_rows.rows,
        bad=bad_rows.bad,
        examples=bad_rows.examples,
        places=[raw.place for raw, _ in found],
    )


@pytest.fixture(scope="session")
def read():
    return _read


@pytest.fixture
def peak_bytes():
    """Gives the most memory that pyarrow has held since the test began."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    yield pool.max_memory
    pa.set_memory_pool(before)


def _write_records(path, records, options="group_size:1"):
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


@pytest.fixture(scope="session")
def write_records():
    return _write_records


@pytest.fixture(scope="session")
def example_class():
    """Builds the message class of `tf.train.Example` from its published definition."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, kind in (("Bytes", "BYTES"), ("Float", "FLOAT"), ("Int64", "INT64")):
        values = file.message_type.add(name=f"{name}List").field.add(name="value", number=1)
        values.type, values.label = getattr(kinds, f"TYPE_{kind}"), kinds.LABEL_REPEATED
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes", "float", "int64"), 1):
        one = feature.field.add(name=f"{name}_list", number=number, label=kinds.LABEL_OPTIONAL)
        one.type, one.type_name, one.oneof_index = kinds.TYPE_MESSAGE, f".t.{name.title()}List", 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    value = entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE)
    value.label, value.type_name = kinds.LABEL_OPTIONAL, ".t.Feature"
    field = features.field.add(name="feature", number=1, type=kinds.TYPE_MESSAGE)
    field.label, field.type_name = kinds.LABEL_REPEATED, ".t.Features.FeatureEntry"
    example = file.message_type.add(name="Example").field.add(name="features", number=1)
    example.type, example.label = kinds.TYPE_MESSAGE, kinds.LABEL_OPTIONAL
    example.type_name = ".t.Features"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))
