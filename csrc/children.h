/*
 * Children of fork() that a target's messages told of, until somebody else has copies of their
 * descriptors. Floor 3. Each is in a slot of the target's, and in the same one of the state's table
 * (kept.h), so that a successor finds it. The pager adds them; the session's callers take them.
 *
 * There are LR_KEPT_CHILDREN_MAX slots. The pager reads no more messages than there are slots free:
 * each of them may be of a fork.
 */
#ifndef LR_CHILDREN_H
#define LR_CHILDREN_H

#include "target.h"

/* How many more there is room for: as large as can be where none are taken. */
uint32_t lr_children_room(struct lr_target *target);
/* Whether there is one. */
bool lr_children_any(struct lr_target *target);
/* Note one, that is held back until it is released where there is a way to know when. There is room
 * for it. */
void lr_children_add(struct lr_target *target, int uffd, int state, uint32_t number);
/* Write them into a table that is about to be published. The lock is held. */
void lr_children_save(struct lr_target *target, struct lr_kept_table *table);
/* Take them from a table that was: false where they cannot be. What is no userfaultfd here is -1.
 */
bool lr_children_load(struct lr_target *target, const struct lr_kept_table *table);
/* Close the states of those with higher numbers: what told of them was not worked on after all. */
void lr_children_drop_after(struct lr_target *target, uint64_t number);

/* The userfaultfd of the one in a slot that is held back. For the thread that adds them. */
bool lr_children_is_held(struct lr_target *target, uint32_t slot, int *ret_uffd);
bool lr_children_any_held(struct lr_target *target);
/* Hold none back any more: true where there was one. */
bool lr_children_release(struct lr_target *target);

/* The first that was not handed out: 1, or 0. */
int lr_children_next(struct lr_target *target, struct lr_child *ret_child);
/* One that was is to be forgotten, here and in the state: LR_ERR_NOT_FOUND. */
int lr_children_forget(struct lr_target *target, uint32_t number);

#endif
