"""Make every call take a plan that it would not take by itself."""

import dataclasses

from fastbn.backends.cpu import plan


def force(monkeypatch, **changes):
    """Change fields of every plan that is made from now on."""
    make = plan.make
    monkeypatch.setattr(plan, "make", lambda *shape: dataclasses.replace(make(*shape), **changes))
