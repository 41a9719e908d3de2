"""The scheduler's decisions as pure functions: what fits (``filters``), what fits best (``scores``), who must go (``preemption``).

``nodes`` holds the picture of the cluster they read; ``control/scheduler.py`` keeps that picture current and binds.
"""
