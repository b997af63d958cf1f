"""What is the same after a move, and what is not: tables, the program that is moved, and the ledger made from them."""

import pytest

pytest.register_assert_rewrite("tests.fidelity.inside")
