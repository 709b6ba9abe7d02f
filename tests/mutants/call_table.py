"""Faults of sdpa_varlen and sdpa_paged in Python, which their files of pytest's must catch."""

from __future__ import annotations

from fault import mutant

ROWS = "csrc/bindings/token_rows.cpp"
PAGES = "csrc/bindings/paged_call.cpp"
INDICES = "csrc/bindings/index_array.cpp"
OUTPUTS = "csrc/bindings/outputs.cpp"

VARLEN_TEST = "test_varlen.py"
PAGED_TEST = "test_paged.py"

IDLE = "test_rows_that_are_out_of_use_or_of_no_sequence"
REFUSED = "test_what_is_refused"

CALL_MUTANTS = (
    mutant("paged: slots and heads of a page are mixed up", PAGES,
           "std::swap(array.strides[1], array.strides[2]);", "",
           PAGED_TEST, "test_pages_of_every_size"),
    mutant("paged: a sequence begins at the next one's pages", PAGES,
           "pages.starts.assign(indptr.begin(), indptr.end() - 1)",
           "pages.starts.assign(indptr.begin() + 1, indptr.end())",
           PAGED_TEST, "test_pages_of_every_size"),
    mutant("paged: a length reaches into the next sequence's pages", PAGES,
           "entries = (*options.indptr)[b + 1] - (*options.indptr)[b];",
           "entries = pages.n_entries - (*options.indptr)[b];", PAGED_TEST, REFUSED),
    mutant("paged: indices are checked all the same", PAGES,
           "pages.check_entries = options.check_indices", "pages.check_entries = true",
           PAGED_TEST, "test_without_checks_of_indices"),
    mutant("varlen: a range's last row in use is cleared", ROWS,
           "rest{cu_seqlens[b] + lengths[b], cu_seqlens[b + 1]}",
           "rest{cu_seqlens[b] + lengths[b] - 1, cu_seqlens[b + 1]}", VARLEN_TEST, IDLE),
    mutant("varlen: rows of a range past its length are left alone", ROWS,
           "if (rest.begin < rest.end) tokens.unused",
           "if (rest.begin > rest.end) tokens.unused", VARLEN_TEST, IDLE),
    mutant("varlen: rows of no sequence are cleared in a caller's out", ROWS,
           "if (fresh) clear_out(", "if (fresh || true) clear_out(", VARLEN_TEST, IDLE),
    mutant("varlen: the first row of each sequence is the next one's", ROWS,
           "problem.q_rows.assign(cu_seqlens.begin(), cu_seqlens.end() - 1)",
           "problem.q_rows.assign(cu_seqlens.begin() + 1, cu_seqlens.end())",
           VARLEN_TEST, "test_random_batches"),
    mutant("varlen: numbers may fall", ROWS,
           "if (ends[i] >= ends[i - 1]) continue;", "continue;", VARLEN_TEST, REFUSED),
    mutant("indices: strides are ignored", INDICES,
           "from[i * stride]", "from[stride > 0 ? i : i * stride]",
           VARLEN_TEST, "test_index_arrays_of_every_layout"),
    mutant("outputs: packed results lie heads first", OUTPUTS,
           "const Array like = tokens_first(inputs.q)", "const Array& like = inputs.q",
           VARLEN_TEST, "test_the_axes_of_a_result_lie_in_the_order_of_q"),
)  # fmt: skip
