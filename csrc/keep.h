/*
 * Keeping what is known of a peer where it outlives this process (kept.h), and taking it up again.
 * Floor 4, used by whoever reads a target's messages, and by the session before anyone does.
 *
 * A message that was read is gone from the kernel, and its sender goes on. So it is read into the
 * journal, which was empty, worked on, and then the journal is emptied. Who takes over works on
 * what is in it. Pages that were given up may be so noted twice; what changes the table of pieces
 * must not, so each of those messages has a number, and the table that of the last that is in it.
 */
#ifndef LR_KEEP_H
#define LR_KEEP_H

#include "target.h"

/* As lr_uffd_read. */
int lr_keep_read(struct lr_target *target, struct lr_uffd_message *ret_messages, int room);
/* A child was forked: make its state, of what is known at this moment, and note it.
 * LR_KEEP_NOTHING: it has nothing left to load, and needs nobody: its userfaultfd is to be closed,
 * once it is kept that this was worked on. LR_ERR_NOMEM, LR_ERR_LIMIT: nothing was done. */
#define LR_KEEP_NOTHING 1
int lr_keep_child(struct lr_target *target, int uffd, uint64_t number);
/* A message was worked on that changed the table of pieces, or told of a child. */
void lr_keep_told(struct lr_target *target);
/* All that were read have been worked on. */
void lr_keep_done(struct lr_target *target);

/* Keep the table as it is, but for the pieces of `without`, which may be NULL. */
void lr_keep_save(struct lr_target *target, const struct lr_range *without);
/* Take up the table and what is in the journal. LR_ERR_STATE where it cannot be; *ret_is_there is
 * false where none was kept yet. Nobody else uses the target. */
int lr_keep_load(struct lr_target *target, bool *ret_is_there);

#endif
