"""Faults drawn from a seed, and a kill at every durable write, against real stores; and a checker of what is left."""
