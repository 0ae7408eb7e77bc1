"""Pages from templates: one file each, with nothing to fetch. All of them share ``base.html.j2``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from balora.files import write_text


def write(path: Path, template: str, **values: Any) -> Path:
    """Fill a template and write the page.

    Args:
        path: The HTML file.
        template: Name of a template of this package.
        values: What the template asks for; text is escaped.

    Returns:
        ``path``.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("balora.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    write_text(path, environment.get_template(template).render(**values))
    return path
