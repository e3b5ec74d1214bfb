"""The report's page: small pieces of HTML, and the frame with its style."""

from __future__ import annotations

from html import escape


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}&thinsp;%"


def duration_text(seconds: float) -> str:
    """1 h 05 min, 3 min 12 s, or 4.2 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.1f} s"


def memory_text(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def tile(value: str, label: str, note: str = "") -> str:
    """A key figure; value is markup, the rest plain text."""
    small = f'<div class="hint">{escape(note)}</div>' if note else ""
    return f'<div class="tile"><div class="figure">{value}</div><div>{escape(label)}</div>{small}</div>'


def card(title: str, body: str, note: str = "", *, wide: bool = False) -> str:
    """A framed chart; body is markup."""
    hint = f'<p class="note">{escape(note)}</p>' if note else ""
    kind = "card wide" if wide else "card"
    return f'<section class="{kind}"><h3>{escape(title)}</h3>{hint}{body}</section>'


# Braces are doubled: this goes through str.format.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} - LeanTAD</title>
<style>
:root {{ color-scheme: light; --ink: #1d2530; --soft: #5c6875; --line: #e3e8ee; --paper: #ffffff;
  --ground: #f5f7fa;  --blue: #0072B2; --pale: #a9cfe6; --red: #D55E00; --truth: #d9dfe7; --cap: #47525f; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }}
header p {{ margin: 4px 0 0; color: var(--soft); }}
h1 {{ margin: 0; font-size: 32px; line-height: 1.2; letter-spacing: -0.015em; overflow-wrap: anywhere; }}
h2 {{ margin: 44px 0 12px; font-size: 21px; letter-spacing: -0.01em; }}
h3 {{ margin: 0 0 10px; font-size: 15px; }}
.note {{ margin: 0 0 12px; color: var(--soft); max-width: 78ch; }}
.card .note {{ font-size: 13px; margin-top: -6px; max-width: none; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(164px, 1fr)); gap: 14px;
  margin-top: 26px; }}
.tile, .card, .video {{ background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }}
.tile {{ padding: 14px 16px 12px; }}
.tile:first-child {{ border-top: 3px solid var(--blue); padding-top: 12px; }}
.figure {{ font-size: 25px; line-height: 1.3; font-weight: 650; letter-spacing: -0.02em; white-space: nowrap;
  font-variant-numeric: tabular-nums; }}
.hint {{ color: var(--soft); font-size: 13px; }}
.grid2 {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr));
  gap: 16px; }}
.card {{ padding: 18px 18px 14px; min-width: 0; display: flex; flex-direction: column; }}
.card .chart {{ margin-top: auto; }}
.wide, .kinds {{ grid-column: 1 / -1; }}
.grid2 + .wide {{ margin-top: 16px; }}
.chart {{ display: block; width: 100%; height: auto; font-family: inherit; }}
.chart text {{ fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }}
.chart .name, .chart .value {{ fill: var(--ink); }}
.chart .name {{ font-size: 12.5px; }}
.grid, .mark {{ stroke: var(--line); stroke-width: 1; }}
.mark {{ stroke: #1d2530; opacity: 0.07; pointer-events: none; }}
.axis {{ stroke: #9aa5b1; stroke-width: 1; }}
.column {{ fill: var(--blue); }}
.chart .value {{ paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }}
.classes {{ columns: calc(var(--label) + 200px) auto; column-gap: 36px; }}
.class {{ display: grid; grid-template-columns: minmax(0, var(--label)) 1fr 40px 40px; gap: 10px;
  align-items: center; height: 25px; break-inside: avoid; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }}
.class .label {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
.class b {{ text-align: right; font-weight: 600; }}
.count {{ text-align: right; color: var(--soft); }}
.track {{ position: relative; height: 12px; background: #eef2f6; border-radius: 3px; overflow: hidden; }}
.track i {{ position: absolute; inset: 0 auto 0 0; border-radius: 3px; }}
.loose {{ background: var(--pale); }}
.mean {{ background: var(--blue); }}
.key {{ display: flex; flex-wrap: wrap; gap: 6px 24px; margin: 0 0 14px; font-size: 13.5px; }}
.key span {{ display: inline-flex; align-items: center; gap: 8px; }}
.key i {{ width: 26px; }}
.kinds {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 4px 24px;
  font-size: 13.5px; color: var(--soft); }}
.kinds i {{ display: inline-block; width: 13px; height: 13px; border-radius: 2px; margin-right: 8px;
  vertical-align: -2px; }}
.kinds b {{ color: var(--ink); }}
table {{ border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 6px 12px 5px 0; text-align: left; vertical-align: top; }}
th {{ font-weight: 600; }}
tbody tr {{ border-top: 1px solid var(--line); }}
td small {{ margin-left: 4px; }}
th small {{ display: block; }}
small {{ font-size: 12.5px; font-weight: 400; color: var(--soft); }}
.k-truth {{ height: 16px; background: var(--truth); border-top: 4px solid var(--cap); }}
.k-hit {{ height: 6px; border-radius: 2px; background: var(--blue); }}
.k-wrong {{ height: 6px; border-radius: 2px; border: 1.5px solid var(--red); background: #fff; }}
.k-weak {{ height: 4px; border-radius: 2px; background: #b3bdc9; }}
.video {{ margin: 0 0 14px; padding: 14px 18px 10px; overflow-x: auto; }}
.video .chart {{ min-width: 760px; }}
figcaption {{ display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: baseline; margin-bottom: 10px; }}
figcaption span {{ color: var(--soft); font-size: 13.5px; }}
figcaption b {{ overflow-wrap: anywhere; }}
figcaption .score {{ margin-left: auto; color: var(--ink); font-weight: 600;
  font-variant-numeric: tabular-nums; }}
.lane {{ fill: #f6f8fa; }}
.truth {{ fill: var(--truth); }}
.cap {{ fill: var(--cap); }}
.cut {{ stroke: #5c6875; stroke-width: 1.2; stroke-dasharray: 4 4; }}
.hit {{ fill: var(--blue); }}
.wrong {{ fill: #ffffff; stroke: var(--red); stroke-width: 1.4; }}
.hit.weak {{ fill: #8fbfdc; }}
.wrong.weak {{ fill: #b3bdc9; stroke: none; }}
details {{ margin: 8px 0; }}
summary {{ cursor: pointer; color: var(--soft); font-size: 13.5px; }}
pre {{ background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px;
  overflow-x: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
footer {{ margin-top: 48px; color: var(--soft); font-size: 13px; }}
@media (max-width: 600px) {{ main {{ padding: 24px 12px 48px; }} .card, .video {{ padding: 12px 12px 10px; }}
  .chart .tick, .chart .name {{ font-size: 13.5px; }} }}
@media print {{ body {{ background: #fff; }} .card, .video, .tile {{ break-inside: avoid; }} }}
</style>
</head>
<body>
<main>
<header><h1>{name}</h1><p>{subtitle}</p></header>
{body}
<footer>Made by LeanTAD. Rest the pointer on a mark for its numbers.</footer>
</main>
</body>
</html>
"""
