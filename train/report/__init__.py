"""The report.html of a run: build (what goes in), charts, timelines and their svg, page (the frame)."""
