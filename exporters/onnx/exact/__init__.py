"""The exact profile: a decoder whose logits have the same bits on every machine.

Floating-point addition is not associative, so a sum's bits depend on the order in which a kernel adds; and no standard
says what exp or sin return in the last place. Everything else that a decoder does has one right result. So the program
that torch traced is rewritten (`lower`) until nothing else is left:

* Sums are made exact, not ordered. Addends that are multiples of one unit, and few enough, add up without rounding in
  whatever order. Matrices are integers by nature: their weights are written in digits of seven bits (`digits`), the
  input of a layer is rounded to 16 or 8 bits relative to the largest of its token, and int8 kernels, the fastest that
  processors have, add products without rounding. One weighted sum in float64 puts the digits together, exactly again,
  and rounds once. The input's second byte meets a weight's highest digit alone, for speed.
* Attention's products are float64 sums of values that lie on grids wide enough for the context (`products`).
* exp, tanh, sin and cos are polynomials of additions and multiplications, each rounded correctly (`elementary`).

What a token sees is rounded by what is its own alone, so a prompt in one piece, token by token, or in a padded batch
gives the same bits. The price is memory, a byte for each digit of a weight, three on most grids; `build` writes the
files. A runtime that reorders or fuses elementwise operations, or divides inexactly, is not exact, and is found out
by comparing with PyTorch's run of the same program, operation by operation (`runtime_tests.interpreter`).
"""
