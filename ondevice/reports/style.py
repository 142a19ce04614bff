"""The style of report.html: system fonts, light and dark, readable on a telephone and on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --dim: #5f6875; --paper: #fbfbf9; --card: #ffffff; --line: #e2e3df;
  --main: #2456a6; --held: #b34700; --right: #1b7340; --wrong: #b3261e; --soft: #dbe5f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --dim: #9aa3b0; --paper: #14171c; --card: #1b1f26;
  --line: #2e343d; --main: #86b1f5; --held: #f2a35e; --right: #6fcf97; --wrong: #ff8a80; --soft: #2a3a55; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
header { margin-bottom: 36px; }
h1 { font-size: 34px; line-height: 1.2; margin: 2px 0 8px; letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0 0 12px; }
h3 { font-size: 15px; margin: 20px 0 8px; color: var(--dim); font-weight: 600; }
p { margin: 0 0 8px; }
.mark { color: var(--main); font-weight: 650; letter-spacing: 0.02em; margin: 0; }
.way { font-size: 17px; overflow-wrap: anywhere; }
.dim, .notes, .legend { color: var(--dim); font-size: 14px; }
section { margin: 0 0 44px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 15px; }
th, td { padding: 7px 10px; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--dim); font-weight: 600; font-size: 13px; vertical-align: bottom; }
tbody th { font-weight: 600; }
td { white-space: nowrap; }
tr.sum td, tr.sum th { border-bottom: 0; border-top: 2px solid var(--line); }
.bar { display: block; height: 4px; margin: 4px 0 0 auto; max-width: 110px; background: var(--soft);
  border-radius: 2px; }
.bar i { display: block; height: 100%; background: var(--main); border-radius: 2px; }
.time .bar { max-width: 420px; height: 8px; }
.notes { margin: 12px 0 0; padding-left: 18px; }
.notes li { margin: 3px 0; overflow-wrap: anywhere; }
.grid2, .grid3 { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); }
.grid3 { grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }
figure, article { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; min-width: 0; }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: 6px; }
figcaption span { font-weight: 400; color: var(--dim); margin-left: 4px; }
svg { display: block; width: 100%; height: auto; }
svg.wide { max-width: 720px; margin-bottom: 14px; }
svg text { fill: var(--dim); font: 11px system-ui, sans-serif; }
svg text.label { fill: var(--ink); font-size: 12.5px; }
.grid { stroke: var(--line); fill: none; }
path.raw { stroke: var(--main); stroke-opacity: 0.38; fill: none; stroke-width: 1.1; stroke-linejoin: round; }
path.mean { stroke: var(--main); fill: none; stroke-width: 2; stroke-linejoin: round; }
path.whisker { stroke: var(--main); fill: none; stroke-width: 2; }
circle.held { fill: var(--held); stroke: var(--card); stroke-width: 1; }
.key { margin-right: 18px; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: 18px; height: 0; margin-right: 7px; vertical-align: middle;
  border-top: 2px solid var(--main); }
.key.raw::before { border-top-width: 1px; opacity: 0.5; }
.key.dot::before { width: 9px; height: 9px; border: 0; border-radius: 50%; background: var(--held); }
.prompt { font-weight: 600; overflow-wrap: anywhere; white-space: pre-wrap; }
.prompt .dim { font-weight: 400; margin-left: 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 14px; margin: 0; font-size: 15px; }
dt { color: var(--dim); }
dd { margin: 0; min-width: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.group { list-style: none; margin: 0; padding: 0; font-size: 15px; }
.group li { display: flex; gap: 10px; padding: 4px 0; border-top: 1px solid var(--line); }
.group .text { flex: 1; min-width: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.sign { font-weight: 700; width: 1.1em; flex: none; }
.right .sign { color: var(--right); }
.wrong .sign { color: var(--wrong); }
.earned { color: var(--dim); font-variant-numeric: tabular-nums; }
mark { background: none; color: inherit; text-decoration: underline 2px; text-underline-offset: 3px; }
details { border-top: 1px solid var(--line); padding: 8px 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--dim); }
@media print { figure, article { break-inside: avoid; } body { background: none; } }
"""
