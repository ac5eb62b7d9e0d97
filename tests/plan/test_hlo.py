"""The collectives of small programs, written down as the compilers print them."""

import pytest

from xformer.plan.hlo import BETWEEN_SLICES, Collective, collectives

MESH = {"data": 2, "fsdp": 4, "tensor": 2}

ADD = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""


def program(*lines, before=""):
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule step\n{ADD}\n{before}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def gather(groups, channel=1):
    return (
        f"%all-gather.{channel} = bf16[8,512]{{1,0:T(8,128)(2,1)S(1)}} all-gather(%p), "
        f"channel_id={channel}, replica_groups={groups}, dimensions={{1}}"
    )


@pytest.mark.parametrize(
    ("groups", "axes", "size"),
    [
        ("{{0,2,4,6},{8,10,12,14},{1,3,5,7},{9,11,13,15}}", "fsdp", 4),
        ("[4,4]<=[8,2]T(1,0)", "fsdp", 4),
        ("[8,2]<=[16]", "tensor", 2),
        ("[8,2]<=[2,8]T(1,0)", "data", 2),
        ("mesh['a'=8,'b'=1,'c'=2] {'c'}", "tensor", 2),
        ("mesh['a'=8,'b'=1,'c'=2] {'a','b'}", "data+fsdp", 8),
        ("mesh['a'=4,'b'=4], device_ids=([2,4,2]T(1,0,2)) {'a'}", "fsdp", 4),
        ("mesh['a'=16] {'a':(2)4}", "fsdp", 4),
        ("{}", "data+fsdp+tensor", 16),
    ],
)
def test_groups_in_every_form_name_their_axes(groups, axes, size):
    (found,) = collectives(program(gather(groups)), MESH)
    assert found == Collective("all-gather", axes, size, 8 * 512 * 2)


@pytest.mark.parametrize(
    ("kind", "wire"),
    [("all-gather", 0.75), ("reduce-scatter", 0.75), ("all-to-all", 0.75), ("all-reduce", 1.5)],
)
def test_wire_bytes_are_those_of_a_ring(kind, wire):
    assert Collective(kind, "fsdp", 4, 1000).wire_bytes == 1000 * wire


def test_a_reduce_scatter_is_as_large_as_what_goes_in():
    line = (
        "%r = f32[8,128]{1,0} reduce-scatter(%p), channel_id=1, replica_groups=[4,4]<=[8,2]T(1,0), "
        "dimensions={1}, to_apply=%add"
    )
    (found,) = collectives(program(line), MESH)
    assert (found.kind, found.array_bytes) == ("reduce-scatter", 8 * 512 * 4)


def test_an_all_reduce_of_several_arrays_is_their_sum():
    line = (
        "%r = (bf16[512,512]{1,0:T(8,128)(2,1)}, /*index=1*/f32[]{:T(128)}) all-reduce(%a, %b), "
        "channel_id=1, replica_groups=[8,2]<=[16], to_apply=%add"
    )
    (found,) = collectives(program(line), MESH)
    assert found.array_bytes == 512 * 512 * 2 + 4


def test_an_all_reduce_of_which_a_part_is_kept_is_a_reduce_scatter():
    fusion = """
%all-reduce-scatter.1 (input: bf16[512,512]) -> bf16[128,512] {
  %input = bf16[512,512]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.7 = bf16[512,512]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=44, \
replica_groups=[2,8]<=[16], to_apply=%add
  ROOT %slice = bf16[128,512]{1,0} dynamic-slice(%all-reduce.7, %zero, %zero)
}
"""
    line = "%f = bf16[128,512]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1"
    (found,) = collectives(program(line, before=fusion), MESH)
    assert (found.kind, found.axes, found.array_bytes) == (
        "reduce-scatter",
        "fsdp+tensor",
        512 * 512 * 2,
    )


CONDITION = """
%condition (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %limit = s32[]{:T(128)} constant(32)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}
"""


def loop(groups="[8,2]<=[16]", condition=CONDITION, noted=""):
    body = f"""
%body (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %state.1 = (s32[], f32[8]{{0}}) parameter(0)
  {gather(groups)}
  ROOT %next = (s32[], f32[8]{{0}}) tuple(%i, %p)
}}
"""
    line = f"%while = (s32[], f32[8]) while(%t), condition=%condition, body=%body{noted}"
    return program(line, before=condition + body)


def test_what_is_in_a_loop_counts_for_each_turn():
    (found,) = collectives(loop(), MESH)
    assert (found.count, found.array_bytes) == (32, 32 * 8 * 512 * 2)


def test_turns_that_the_compiler_notes_are_taken():
    noted = ', backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0"}}'
    (found,) = collectives(loop(noted=noted), MESH)
    assert found.count == 5


def test_a_limit_in_a_fusion_of_the_condition_is_found():
    condition = """
%compared (i.1: s32[]) -> pred[] {
  %i.1 = s32[] parameter(0)
  %limit = s32[] constant(7)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]{0}) parameter(0)
  ROOT %fusion = pred[] fusion(%i), kind=kLoop, calls=%compared
}
"""
    (found,) = collectives(loop(condition=condition), MESH)
    assert found.count == 7


def test_a_loop_with_collectives_and_no_limit_is_refused():
    with pytest.raises(ValueError, match="no readable number of turns"):
        collectives(loop(condition=CONDITION.replace("constant(32)", "negate(%i)")), MESH)


def fused(number, groups):
    return f"""
%fused.{number} (p.{number}: bf16[8,128]) -> bf16[8,512] {{
  %p.{number} = bf16[8,128]{{1,0}} parameter(0)
  {gather(groups, channel=3)}
}}
"""


def fusions(*groups):
    lines = [
        f"%f.{i} = bf16[8,512] fusion(%p), kind=kLoop, calls=%fused.{i}" for i in range(len(groups))
    ]
    return program(*lines, before="".join(map(fused, range(len(groups)), groups)))


def test_a_chain_of_fusions_that_repeats_a_gather_counts_once():
    (found,) = collectives(fusions(*["[8,2]<=[16]"] * 3), MESH)
    assert (found.count, found.array_bytes) == (1, 8 * 512 * 2)


def test_a_chain_that_goes_on_beside_a_loop_counts_as_often_as_its_ends():
    body = """
%body (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.1 = (s32[], f32[8]{0}) parameter(0)
  %f.1 = bf16[8,512] fusion(%p), kind=kCustom, calls=%fused.1
  ROOT %next = (s32[], f32[8]{0}) tuple(%i, %p)
}
"""
    lines = (
        "%f.0 = bf16[8,512] fusion(%p), kind=kLoop, calls=%fused.0",
        "%while = (s32[], f32[8]) while(%t), condition=%condition, body=%body",
        "%f.2 = bf16[8,512] fusion(%p), kind=kLoop, calls=%fused.2",
    )
    links = "".join(fused(number, "[8,2]<=[16]") for number in range(3))
    (found,) = collectives(program(*lines, before=links + CONDITION + body), MESH)
    assert (found.count, found.array_bytes) == (1, 8 * 512 * 2)


def test_fusions_that_gather_in_other_groups_are_no_chain():
    groups = ("[8,2]<=[16]", "[8,2]<=[2,8]T(1,0)", "[4,4]<=[8,2]T(1,0)", "[8,2]<=[16]")
    found = collectives(fusions(*groups), MESH)
    assert {(one.axes, one.group, one.count) for one in found} == {
        ("tensor", 2, 1),
        ("data", 2, 1),
        ("fsdp", 4, 1),
    }


def test_what_is_written_out_counts_each_time():
    """All that `jax.shard_map` says has one number."""
    lines = [gather("[8,2]<=[16]").replace("%all-gather.1", f"%gather.{i}") for i in range(3)]
    (found,) = collectives(program(*lines), MESH)
    assert (found.count, found.array_bytes) == (3, 3 * 8 * 512 * 2)


@pytest.mark.parametrize(
    ("kind", "result", "size"),
    [
        ("all-gather", "(f32[128,4]{1,0}, f32[512,4]{1,0})", 512 * 4 * 4),
        ("all-gather", "((f32[2]{0}, f32[3]{0}), (f32[8]{0}, f32[12]{0}))", 80),
        ("reduce-scatter", "((f32[8]{0}, f32[4]{0}), (f32[2]{0}, f32[1]{0}))", 4 * 12),
        ("reduce-scatter", "((bf16[8,64]{1,0}), bf16[2,64]{1,0})", 2 * 8 * 64),
        ("all-to-all", "((bf16[8,64]{1,0}), bf16[8,64]{1,0})", 2 * 8 * 64),
        ("all-reduce", "(f32[8]{0}, f32[4]{0})", 4 * 12),
    ],
)
def test_a_started_exchange_is_as_large_as_what_comes_of_it(kind, result, size):
    line = (
        f"%x = {result} {kind}-start(%p, %q), channel_id=1, replica_groups=[4,4]<=[8,2]T(1,0), "
        "dimensions={0}, to_apply=%add"
    )
    (found,) = collectives(program(line), MESH)
    assert (found.kind, found.array_bytes) == (kind, size)


def test_a_started_gather_is_as_large_as_its_result():
    line = (
        "%g = (f32[8,128]{1,0}, f32[8,512]{1,0}) all-gather-start(%p), channel_id=1, "
        "replica_groups=[8,2]<=[16], dimensions={1}"
    )
    (found,) = collectives(program(line), MESH)
    assert found.array_bytes == 8 * 512 * 4


def test_a_permutation_names_the_axes_that_it_moves_along():
    line = (
        "%c = (f32[8,128]{1,0}, f32[8,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) "
        "collective-permute-start(%p), channel_id=1, source_target_pairs={{0,2},{2,4},{4,6},{6,0}}"
    )
    (found,) = collectives(program(line), MESH)
    assert (found.axes, found.wire_bytes) == ("fsdp", 8 * 128 * 4)


def test_what_is_sent_between_slices_is_told_from_other_sends():
    sent = (
        "%s = (bf16[512,128]{1,0}, u32[]{:S(2)}, token[]{:S(2)}) send(%p, %token), channel_id=5, "
        'is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ONE_TO_ONE"}'
    )
    (found,) = collectives(program(sent), MESH)
    assert (found.axes, found.wire_bytes) == (BETWEEN_SLICES, 512 * 128 * 2)
    assert collectives(program(sent.replace("megascale", "host")), MESH) == ()


def test_what_nobody_calls_does_not_count():
    unused = f"\n%unused (q: f32[8]) -> f32[8] {{\n  {gather('[8,2]<=[16]')}\n}}\n"
    assert collectives(program("ROOT %p = f32[8] parameter(0)", before=unused), MESH) == ()
