"""How the cost of waking looks: of `bench` and of `doctor`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore._wakeup import Setting, Wakeup


def print_wakeup(wakeup: Wakeup) -> None:
    """What waking a thread costs, as a table."""
    from ._show import duration, print_fields

    fields = [("on the same core", duration(wakeup.one_core_us))]
    if wakeup.idle_core_us is not None:
        fields.append(("on an idle core", duration(wakeup.idle_core_us)))
    if wakeup.busy_core_us is not None:
        fields.append(("on a core kept busy", duration(wakeup.busy_core_us)))
    print("waking a thread:")
    print_fields(fields)


def print_settings(settings: tuple[Setting, ...]) -> None:
    """What to set, what it does, and what takes it back."""
    for setting in settings:
        print(f"  {setting.command}")  # one line, whatever its length: it is there to be copied
        print_wrapped(setting.effect, "      ")
        print(f"      undo: {setting.undo}")


def print_wrapped(text: str, start: str) -> None:
    """In 78 columns, but for what must not be broken."""
    import textwrap

    lines = textwrap.wrap(text, 78 - len(start), break_on_hyphens=False, break_long_words=False)
    for line in lines:
        print(start + line)
