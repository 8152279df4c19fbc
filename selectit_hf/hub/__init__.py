"""Publishing on the Hub: card, staged files, one commit. Only this room writes datasets there."""

from selectit_hf.hub.card import CardSettings
from selectit_hf.hub.publishing import publish, push_run
from selectit_hf.hub.push_commit import Pushed
from selectit_hf.hub.push_plan import PushSettings

__all__ = ["CardSettings", "PushSettings", "Pushed", "publish", "push_run"]
