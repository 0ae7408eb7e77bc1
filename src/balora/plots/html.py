"""HTML pages from templates. Every page is one file that loads nothing; all templates extend ``base.html.j2`` of this package."""

from pathlib import Path
from typing import Any

import jinja2

from balora.files import write_text


def write_page(path: Path, template: str, *, package: str, **values: Any) -> Path:
    """Write the page of a package's template to ``path`` and return the path.

    Text in ``values``, the variables of the template, is escaped. A missing variable is an error.
    """
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in (package, "balora.plots")])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    write_text(path, environment.get_template(template).render(**values))
    return path
