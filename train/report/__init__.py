"""The report.html of a run: a module and a template (.html.j2) for each section, joined by build.py."""
