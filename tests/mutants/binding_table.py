"""Faults of the bindings, which files of pytest's must catch: planted with `--all` or `--only`.

Each is one file to compile, but the copy has to be built with the extension.
"""

from __future__ import annotations

from fault import mutant

TENSOR = "csrc/bindings/dlpack_tensor.cpp"
STATE = "csrc/bindings/hidden_state.cpp"
TORCH = "csrc/bindings/hidden_torch.cpp"
MLX = "csrc/bindings/hidden_mlx.cpp"

FIELDS_TEST = "test_dlpack_fields.py"
STATE_TEST = "test_hidden_state.py"

WRONG = "test_wrong_fields_are_named"
RIGHT = "test_right_fields_are_taken"

BINDING_MUTANTS = (
    mutant(
        "bindings: extents beside one of 0 are not counted",
        TENSOR,
        "std::max<std::int64_t>(extent, 1)",
        "extent",
        FIELDS_TEST,
        WRONG,
    ),
    mutant(
        "bindings: strides that reach before memory",
        TENSOR,
        "ends[0] >= -most && ends[1] < most",
        "ends[1] < most",
        FIELDS_TEST,
        WRONG,
    ),
    mutant(
        "bindings: a negative device",
        TENSOR,
        "tensor.device.device_id < 0",
        "tensor.device.device_id < -1",
        FIELDS_TEST,
        WRONG,
    ),
    mutant(
        "bindings: byte_offset is ignored",
        TENSOR,
        "static_cast<char*>(tensor.data) + skipped",
        "static_cast<char*>(tensor.data)",
        FIELDS_TEST,
        RIGHT,
    ),
    mutant(
        "bindings: tangents of q alone are seen",
        STATE,
        "if (argument.is_of(Framework::torch)) refuse_tangent(",
        "if (argument.is_of(Framework::torch) && argument.name[0] == 'q') refuse_tangent(",
        STATE_TEST,
        "test_forward_mode_tangents",
    ),
    mutant(
        "bindings: numbers that are traced",
        STATE,
        "refuse_traced(argument.call, {{argument.name, object, type.framework}});",
        "",
        STATE_TEST,
        "test_a_scale_with_a_gradient",
    ),
    mutant(
        "bindings: arrays with functions of their own, if not ufuncs",
        STATE,
        """same_attribute(handle, ndarray, "__array_ufunc__") &&
           same_attribute(handle, ndarray, "__array_function__")""",
        """same_attribute(handle, ndarray, "__array_ufunc__")""",
        STATE_TEST,
        "test_arrays_with_functions_of_their_own",
    ),
    mutant(
        "bindings: MLX is asked once",
        MLX,
        "return runs(probe, arrays, n_arrays) && runs(probe, arrays, n_arrays);",
        "return runs(probe, arrays, n_arrays);",
        STATE_TEST,
        "test_mlx_arrays_that_nothing_traces",
    ),
    mutant(
        "bindings: a dual level of 0 is none",
        TORCH,
        "PyLong_AsLong(level) >= 0",
        "PyLong_AsLong(level) > 0",
        STATE_TEST,
        "test_forward_mode_tangents",
    ),
    mutant(
        "bindings: gradients are refused where grad mode is off",
        TORCH,
        "requires_gradients(tensor) && grad_mode_is_on()",
        "requires_gradients(tensor)",
        "test_dlpack_frameworks.py",
        "test_gradients_are_refused_by_name_while_grad_mode_is_on",
    ),
    mutant(
        "bindings: every dispatch mode is a recording",
        TORCH,
        "return get_mode.is_valid() && !get_mode().is_none();",
        "return get_mode.is_valid();",
        STATE_TEST,
        "test_other_dispatch_modes_are_no_recording",
    ),
)
