/*
 * Reading a target's messages, for whoever is its pager at the moment. Floor 5.
 */
#ifndef LR_LISTEN_H
#define LR_LISTEN_H

#include "pager.h"

/* Read all messages there are: what they say of the memory is done at once, faults are kept.
 * Returns how many were read; where they cannot be read now, a negative number: there is no room
 * for children (children.h), or no descriptor. */
int lr_listen(struct lr_pager *pager);

#endif
