"""`gmix demo`: the whole workflow on generated data, in a few minutes."""

from gmix.demo.run import DemoResult, run_demo
from gmix.demo.scenes import Scene, compose_scenes, load_sources, write_scenes

__all__ = ["DemoResult", "Scene", "compose_scenes", "load_sources", "run_demo", "write_scenes"]
