"""Ready-made views of the console: the questions people ask of a lake, each with an example that the tests run."""

from strop.storage.ready_views import at_k, lineage, rollouts, rounds, training
from strop.storage.ready_views.view import Query, ReadyView

READY: dict[str, ReadyView] = {
    view.name: view for module in (rounds, rollouts, at_k, training, lineage) for view in module.VIEWS
}

__all__ = ["READY", "Query", "ReadyView"]
