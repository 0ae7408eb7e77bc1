"""HTML pages from templates. Every page is one file that loads nothing; all templates extend ``base.html.j2`` of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from balora.files import write_text


def write_page(path: Path, template: str, *, package: str, **values: Any) -> Path:
    """Fill in a template and write the page.

    Args:
        path: HTML file to write.
        template: File name of the template.
        package: Import name of the package that holds the template.
        values: Variables of the template; text is escaped. A missing variable is an error.

    Returns:
        ``path``.
    """
    loaders = [jinja2.PackageLoader(name, ".") for name in (package, "balora.plots")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined
    )
    write_text(path, environment.get_template(template).render(**values))
    return path
