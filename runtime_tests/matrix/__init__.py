"""Every runtime reached, in every configuration, on every model: the ladder's findings as a table of cells.

store     what each climb found, kept on disk, so that a run goes on where another stopped
cells     rows, columns and cells, and what they amount to: values, nothing else
families  which heading a row stands under
plan      what is to be asked: the columns, and the rows that some artifact is for
climb     the ladder on every model, by way of the store; and the matrix that comes of it
render    the matrix as text, as HTML, as JSON
"""
