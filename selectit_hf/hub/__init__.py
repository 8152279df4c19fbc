"""The only writers to the Hub: card, staged files, one commit."""

from selectit_hf.hub.card import CardSettings
from selectit_hf.hub.commits import Pushed, PushSettings
from selectit_hf.hub.publishing import publish, push_run

__all__ = ["CardSettings", "PushSettings", "Pushed", "publish", "push_run"]
