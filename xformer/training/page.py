"""The frame of a page that needs nothing beside itself: no other file, no script, no network.

The functions give HTML; all text that is not HTML already goes through `text`.
"""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any


def page(title: str, kind: str, parts: Sequence[str]) -> str:
    """Writes a page.

    Args:
        title: What it is about.
        kind: What of that, for the title of the window.
        parts: Its content from top to bottom, as HTML; empty ones are left out.

    Returns:
        The whole file.
    """
    body = "\n".join(filter(None, parts))
    return _PAGE.format(title=text(title), kind=text(kind), style=_STYLE, body=body)


def header(title: str, badge: str, tone: str, lines: Sequence[str]) -> str:
    """Says what the page is about, and how that stands.

    Args:
        title: What it is about.
        badge: How that stands, in a word.
        tone: "good", "busy", "bad" or "idle"; anything else has no colour.
        lines: What else there is to say at once, as HTML.

    Returns:
        HTML.
    """
    shown = f'<h1>{text(title)} <span class="badge {text(tone)}">{text(badge)}</span></h1>'
    return f"<header>{shown}{''.join(lines)}</header>"


def tiles(values: Mapping[str, str]) -> str:
    """Shows the most important values large, by their labels; nothing where there are none."""
    shown = [
        f"<div><dt>{text(label)}</dt><dd>{text(one)}</dd></div>" for label, one in values.items()
    ]
    return f'<dl class="tiles">{"".join(shown)}</dl>' if shown else ""


def section(title: str, content: str) -> str:
    """Puts HTML under a heading; nothing where there is none."""
    return f"<section><h2>{text(title)}</h2>{content}</section>" if content else ""


def figures(drawn: Sequence[tuple[str, str]]) -> str:
    """Shows pictures, each a title and its SVG; nothing where there are none."""
    shown = [
        f"<figure><figcaption>{text(title)}</figcaption>{svg}</figure>" for title, svg in drawn
    ]
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


def grid(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table with named columns and rows; nothing where there are no rows."""
    lines = []
    for name, values in rows.items():
        cells = "".join(f"<td>{text(one)}</td>" for one in values)
        lines.append(f"<tr><th>{text(name)}</th>{cells}</tr>")
    head = "".join(f"<th>{text(one)}</th>" for one in ("", *columns))
    shown = f"<table><tr>{head}</tr>{''.join(lines)}</table>"
    return f'<div class="scroll">{shown}</div>' if rows else ""


def table(values: Mapping[str, str]) -> str:
    """A table of names and values; nothing where there are none."""
    rows = [f"<tr><th>{text(key)}</th><td>{text(one)}</td></tr>" for key, one in values.items()]
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>' if rows else ""


def text(value: Any) -> str:
    """Escapes anything for a page; characters that HTML cannot hold become visible."""
    shown = re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", str(value)
    )
    return html.escape(shown)


COLORS = {
    "ink": ("#24292f", "#e6edf3"),
    "grid": ("#d8dee4", "#30363d"),
    "first": ("#2f6fde", "#6ea8fe"),
    "second": ("#d9680f", "#f0a35e"),
    "third": ("#1a8a5a", "#56c596"),
    "fourth": ("#8250df", "#b58cf2"),
}
"""Role -> colour of pictures on light and on dark."""


def color_style(dark: bool) -> str:
    """The roles of `COLORS` as CSS variables."""
    return " ".join(f"--{role}: {pair[dark]};" for role, pair in COLORS.items())


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title} · xformer {kind}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = (
    f"""
:root {{ color-scheme: light dark; --page: #ffffff; --card: #f6f8fa; --soft: #59636e;
  {color_style(dark=False)}
  --good: #1a7f37; --busy: #0969da; --bad: #cf222e; --idle: #7d5d00; }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #0d1117; --card: #161b22; --soft: #9198a1;
  {color_style(dark=True)}
  --good: #3fb950; --busy: #58a6ff; --bad: #f85149; --idle: #d29922; }} }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 76rem;
  background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--grid); }
header p, section > p { margin: .25rem 0 .75rem; color: var(--soft); }
.badge { font-size: .8rem; font-weight: 600; padding: .15rem .6rem; border-radius: 1rem;
  border: 1px solid; vertical-align: middle; white-space: nowrap; color: var(--soft); }
.badge.good { color: var(--good); } .badge.busy { color: var(--busy); }
.badge.bad { color: var(--bad); } .badge.idle { color: var(--idle); }
header p.error { color: var(--bad); overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(max(9.5rem, 22%), 1fr));
  gap: .75rem; margin: 1.25rem 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem;
  padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: 1.2rem; font-weight: 600; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr));
  gap: 1rem; }
figure { margin: 0; padding: .75rem; max-width: 44rem; background: var(--card);
  border: 1px solid var(--grid); border-radius: .5rem; }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .25rem; }
svg { display: block; width: 100%; height: auto; }
blockquote { margin: 0 0 .75rem; padding: .6rem .8rem; background: var(--card);
  border-left: 3px solid var(--first); white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.25rem .3rem 0;
  border-bottom: 1px solid var(--grid); overflow-wrap: anywhere; }
table.events td:not(:last-child) { white-space: nowrap; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
pre { margin: 0 0 .75rem; padding: .8rem; background: var(--card); border: 1px solid var(--grid);
  border-radius: .5rem; overflow-x: auto; font: .8125rem/1.5 ui-monospace, monospace; }
summary { cursor: pointer; color: var(--soft); margin-bottom: .5rem; }
"""
)
