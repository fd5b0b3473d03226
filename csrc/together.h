/*
 * Forks, and what other threads did to the memory at the same time. Floor 4, for whoever reads a
 * target's messages.
 *
 * The kernel copies or moves memory under a lock, and queues the message after it has let go of
 * that: a thread that loses its processor in between has its message come second though it was
 * first. So where a FORK and an UNMAP or REMAP were under way together, the pieces that the table
 * has at FORK's place among the messages may not be those that the child has. Its own userfaultfd
 * then tells what is mapped there. (Pages that are given up at that time may be zeros or not, in
 * any order.)
 *
 * Together means: with no quiet moment in between, in which nothing is under way. So messages are
 * noted until there was one, and children handed out only then.
 */
#ifndef LR_TOGETHER_H
#define LR_TOGETHER_H

#include "target.h"

/* A message is about to be followed, of UNMAP or REMAP. */
void lr_together_note(struct lr_target *target, const struct lr_uffd_message *message);
/* Mend the table of a child that was just told of, where it is certain that it is not as the
 * messages say. */
void lr_together_mend(struct lr_target *target, int uffd, struct lr_kept_table *table);
/* The same for its state, which was made since: false where there is no memory. */
bool lr_together_mend_bits(struct lr_target *target, int state);
/* Whether there was a quiet moment since, or has been none for long: then the children that were
 * held back are handed out, and true where there are any. */
bool lr_together_end(struct lr_target *target);

#endif
