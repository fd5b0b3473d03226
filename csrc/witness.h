/*
 * What a parent saw happen to its memory around a fork(), told to the child. Floor 4.
 *
 * The child's table of pieces is as it was when the pager last read a message. Another thread may
 * unmap or move memory after that and before the copy is made: then pieces lie in the child where
 * its table does not have them, or something else lies there. Only the parent will read of it. So
 * it writes down what it reads in that time, in memory that both have, and the child looks there
 * before it uses its table. What could have been before or after the copy is not guessed: nobody
 * may touch it.
 */
#ifndef LR_WITNESS_H
#define LR_WITNESS_H

#include "target.h"

void lr_witness_close(struct lr_target *target);

/* Before the fork: from now on lr_witness_note is heard. The memory for it is had here, as most
 * sessions never see a fork; where it is not to be had, target->witness is NULL. */
void lr_witness_begin(struct lr_target *target);
/* The pager read of an unmapping or a move. */
void lr_witness_note(struct lr_target *target, const struct lr_uffd_message *message);
/* In the parent: this was all. */
void lr_witness_end(struct lr_target *target);
/* In the child: wait for that, but not for long, and bring the table up to date. Its locks are its
 * own by then; no pager runs. */
void lr_witness_hear(struct lr_target *target, int parent);

#endif
