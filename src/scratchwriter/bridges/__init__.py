"""One module per neighbour; each needs it installed, and nothing below imports one."""
