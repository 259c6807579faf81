"""Stage 7: federation. Ring sums in, the next policy out; agents and coordinator as objects.

Import from the modules: a coordinator needs ``coordinator`` (no torch), an agent ``agent``, the
in-process simulation ``simulate``.
"""
