"""Make every call take a plan that it would not take by itself."""

import inspect

from fastbn.backends.cpu import launch, plan

# Families that add a channel up in the same order, in any arithmetic, so that one may stand for another. "columns" and
# "channels_last" are not among them: the latter cuts more than 65536 values into blocks of rows.
ALIKE = {"channels_first", "overlapped", "tiles"}


def force(monkeypatch, *, family=None, parallel=None, past_cache=None, groups=None):
    """Change every plan that is made from now on; `family` where the result has the same bits."""
    make = plan.make

    def forced(*shape):
        own = make(*shape)
        taken = family if family and own.family in ALIKE else own.family
        return plan.of_family(
            taken,
            own.call_forward is not None,
            own.parallel if parallel is None else parallel,
            past_cache or own.past_cache,
            groups or own.groups or 1,
        )

    monkeypatch.setattr(plan, "make", forced)
    monkeypatch.setattr(launch, "large_call", inspect.unwrap(launch.large_call))  # which keeps what plans said
