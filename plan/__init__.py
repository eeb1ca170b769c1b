"""The memory planner: what each stage of a recipe needs on each device, before anything is loaded."""
