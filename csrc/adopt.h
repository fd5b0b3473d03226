/*
 * A userfaultfd that another process made, initialised and handed over. Floor 2. What becomes of it
 * there is not in our hands.
 */
#ifndef LR_ADOPT_H
#define LR_ADOPT_H

#include "uffd.h"

/* Take a copy of it. LR_ERR_ARGUMENT where it is nothing of that kind; LR_ERR_UNSUPPORTED where it
 * tells of forks and these are not taken, or answers faults by signals. */
int lr_adopt(struct lr_uffd *uffd, int fd, bool takes_forks, struct lr_problem *ret_problem);

#endif
