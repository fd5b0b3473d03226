/*
 * How many bytes this process may still allocate before a limit is reached: that of its memory
 * cgroup or of one of its ancestors (v1 and v2), or the machine's own. For the background fill,
 * which stops before it would have anyone killed, or pages that are in use swapped out.
 *
 * Floor 1 (above error). The owner opens it and closes it; in between any thread may ask. The
 * files stay open, so asking neither allocates nor looks up a name, and costs some microseconds (8
 * here, of them 5 for /proc/meminfo). A process that is moved to another cgroup afterwards is still
 * judged by the old one.
 */
#ifndef LR_HEADROOM_H
#define LR_HEADROOM_H

#include <stdbool.h>

#include "error.h"

/* Of deeper hierarchies the innermost are watched. */
#define LR_HEADROOM_LEVELS_MAX      16
#define LR_HEADROOM_DESCRIPTORS_MAX (1 + 5 * LR_HEADROOM_LEVELS_MAX)

/* A cgroup. Descriptors, -1 where there is no such file. */
struct lr_headroom_level {
	int limit[2]; /* v2: memory.max, memory.high; v1: of memory, of memory and swap */
	int usage[2]; /* v2 has only the first */
	int stat;
	bool is_v1;
};

struct lr_headroom {
	int meminfo;
	uint32_t level_count;
	struct lr_headroom_level levels[LR_HEADROOM_LEVELS_MAX];
};

/* Find what limits this process. `root` is "/", or a folder with made-up /proc and /sys files.
 * What is not there does not limit; LR_ERR_LIMIT and LR_ERR_NOMEM where it could not be looked at
 * for want of descriptors or memory: nothing is open then. */
int lr_headroom_open(struct lr_headroom *headroom, const char *root);
/* The same for another process, by its number; 0: this one. */
int lr_headroom_open_for(struct lr_headroom *headroom, const char *root, int32_t process);
void lr_headroom_close(struct lr_headroom *headroom);

/* The descriptors that it has; returns how many. */
unsigned lr_headroom_list(const struct lr_headroom *headroom,
			  int ret_fds[LR_HEADROOM_DESCRIPTORS_MAX]);

/* Bytes until the nearest limit, what the kernel can take back at once (page cache that is not in
 * use) counted as free; UINT64_MAX where nothing limits. memory.high counts as a limit: beyond it
 * the process is throttled. Swap is not counted as room. */
uint64_t lr_headroom_get(const struct lr_headroom *headroom);

/* Whether `bytes` more leave each limit's margin free. Cheaper than lr_headroom_get: what can be
 * taken back is only asked for where it matters. */
bool lr_headroom_allows(const struct lr_headroom *headroom, uint64_t bytes);

/* What shall stay free below a limit, for demand loads and for others: a sixteenth of it, at least
 * 16 MiB, at most 1 GiB. */
uint64_t lr_headroom_margin(uint64_t limit);

#endif
