"""What `stretto bench` continues: real words, because zeros or noise cost a model and a drafter other time."""

PARAGRAPH = """\
In a fugue the voices do not wait for each other. The first one states the subject alone; while it goes on with
something else, the second voice takes the subject up, a fifth higher or a fourth lower, and then the third. Near the
end the entries often come closer together, so close that a voice begins before the one before it has finished. This
is the stretto, and it is the moment for which the subject was written: only a melody that fits over itself, shifted
by a few beats, can be used in this way. Bach tried out which delays a subject allows and planned the whole piece
around them. A listener need not know any of this to hear that the music has become denser. Every voice still sings
the same notes in the same order, no note is left out and none is changed, and yet the piece arrives earlier than it
would have if each voice had waited for its turn.
"""
