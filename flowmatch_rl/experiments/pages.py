"""Pages that need no other file: templates, filled."""

import base64
import functools
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """A page.

    Args:
        template: Name of the template's file.
        **values: What it shows, by the names that it uses.

    Returns:
        HTML that needs no other file.
    """
    return _environment().get_template(template).render(**values)


def as_text(png: bytes) -> str:
    """A picture as templates take it.

    Args:
        png: A PNG file.
    """
    return base64.b64encode(png).decode()


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("flowmatch_rl.experiments")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
