"""`gmix demo`: the whole path on data made on the spot, in a few minutes."""

from gmix.demo.run import DemoResult, run_demo
from gmix.demo.scenes import Scene, compose_scenes, load_sources, write_scenes

__all__ = ["DemoResult", "Scene", "compose_scenes", "load_sources", "run_demo", "write_scenes"]
