"""Faults drawn from a seed, and a kill at every durable write, against real stores; a checker that trusts no product."""
