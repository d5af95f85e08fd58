"""The streaming job: accepted events into fresh features, nothing lost, nothing counted twice."""
