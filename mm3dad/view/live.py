"""The faces of the viewer that stay open: `serve_path` in a browser, `show_window` on the desktop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mm3dad.view.browse import list_entries, pick_entry, rescore_entries
from mm3dad.view.session import Session


def open_session(
    path: str | Path,
    *,
    sample_id: str | None = None,
    model: str | Path | None = None,
    layer: str | None = None,
    compare: str | Path | None = None,
) -> Session:
    """Return the session of a path.

    Args:
        path: a sample file, a dataset tree, or the result folder of evaluate or predict.
        sample_id: to begin with; the highest score, or the first defective sample, when None.
        model: folder of a saved model that scores and explains.
        layer: to begin with.
        compare: another result folder of the same samples, or another saved model, shown beside.

    Raises:
        DataError: nothing to see there, an unknown sample, results of other samples.
        ModelError: a model cannot be loaded.
    """
    from mm3dad.run.explain import Explainer

    entries = list_entries(path, None if model is None else Explainer(model))
    first = pick_entry(entries, path, sample_id)
    others = None
    if compare is not None:
        if (Path(compare) / "model.json").is_file():
            others = rescore_entries(entries, Explainer(compare))
        else:
            others = list_entries(compare)
    return Session(entries, first, others, layer)


def serve_path(session: Session, host: str, port: int, tell: Callable[[str], object]) -> None:
    """Show a session in a browser until the process is interrupted.

    Args:
        session: what to show.
        host, port: to listen on.
        tell: called once with the line to print: the address.

    Raises:
        MissingPackageError: viser is missing or too old.
        ConfigError: the port cannot be had.
    """
    from mm3dad.view.browser import BrowserView

    view = BrowserView(session, host, port)
    tell(f"open {view.url} in a browser (over SSH: ssh -L {port}:localhost:{port} HOST); Ctrl-C ends it")
    view.run()


def show_window(session: Session, tell: Callable[[str], object]) -> None:
    """Show a session in a window until it is closed.

    Args:
        session: what to show.
        tell: called with each line to print.

    Raises:
        ConfigError: there is no display.
    """
    from mm3dad.view.window import DesktopView

    DesktopView(session, tell).run()
