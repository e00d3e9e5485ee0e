"""What ``torch.compile`` is given, without its code generation."""

from typing import Any

import pytest
import torch


def trace_compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have ``torch.compile`` compute eagerly, and raise where a function is more than one graph.

    Returns:
        The graphs, which grow as functions are called.
    """
    torch.compiler.reset()  # what other tests compiled counts toward a limit of the function
    compile_function, graphs = torch.compile, []

    def traced(function: Any, dynamic: bool | None = None) -> Any:
        def backend(graph: Any, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        return compile_function(function, backend=backend, fullgraph=True, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", traced)
    return graphs
