"""Executes PTX on the CPU: every thread of every program, in numpy."""

from .emulator import GpuFault, Machine, Memory, Program, Unsupported

__all__ = ["GpuFault", "Machine", "Memory", "Program", "Unsupported"]
