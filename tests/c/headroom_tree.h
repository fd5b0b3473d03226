/*
 * headroom_tree: made-up trees of /proc and /sys files, as the tests of csrc/headroom.c give them
 * to lr_headroom_open. Include after check.h.
 */
#ifndef LR_TESTS_HEADROOM_TREE_H
#define LR_TESTS_HEADROOM_TREE_H

#include "check.h"

#include "headroom.h"

#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>

#define MIB (1ull << 20)
#define GIB (1ull << 30)

static char tree[64];

static inline int remove_one(const char *path, const struct stat *status, int kind, struct FTW *at)
{
	(void)status, (void)kind, (void)at;
	return remove(path);
}

static inline void remove_tree(void)
{
	CHECK_CALL(nftw(tree, remove_one, 8, FTW_DEPTH | FTW_PHYS));
}

static inline void make_tree(void)
{
	strcpy(tree, "/tmp/lr-headroom-XXXXXX");
	CHECK(mkdtemp(tree) != NULL);
}

/* Write a file of the tree, and make the folders that it lies in. */
__attribute__((format(printf, 2, 3))) static inline void put(const char *path, const char *format,
							     ...)
{
	char whole[1024], text[2048];
	va_list arguments;

	va_start(arguments, format);
	int length = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	CHECK(length >= 0 && length < (int)sizeof(text));
	snprintf(whole, sizeof(whole), "%s%s", tree, path);
	for (char *slash = whole + strlen(tree) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		CHECK(mkdir(whole, 0700) == 0 || errno == EEXIST);
		*slash = '/';
	}
	int fd = (int)CHECK_CALL(open(whole, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
	CHECK_EQ(write(fd, text, (size_t)length), length);
	close(fd);
}

static inline void put_number(const char *folder, const char *name, uint64_t value)
{
	char path[768];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	put(path, "%ju\n", (uintmax_t)value);
}

static inline void put_machine(uint64_t total, uint64_t available)
{
	put("/proc/meminfo",
	    "MemTotal:       %8ju kB\nMemFree:        12345 kB\nMemAvailable:   %8ju kB\n"
	    "Buffers:            1 kB\n",
	    (uintmax_t)total / 1024, (uintmax_t)available / 1024);
}

#define V2_MOUNT                                                                                   \
	"23 1 0:22 / /proc rw,relatime shared:5 - proc proc rw\n"                                  \
	"31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"

static inline void put_v2(const char *membership)
{
	put("/proc/self/mountinfo", V2_MOUNT);
	put("/proc/self/cgroup", "0::%s\n", membership);
}

/* A v2 cgroup without limits, in use by `used`, `inactive` of it page cache that nobody needs. */
static inline void put_v2_level(const char *folder, uint64_t used, uint64_t inactive)
{
	char path[768];

	put_number(folder, "memory.current", used);
	snprintf(path, sizeof(path), "%s/memory.max", folder);
	put(path, "max\n");
	snprintf(path, sizeof(path), "%s/memory.high", folder);
	put(path, "max\n");
	snprintf(path, sizeof(path), "%s/memory.stat", folder);
	put(path, "anon 1\nactive_file %ju\ninactive_file %ju\nslab 7\n", (uintmax_t)(9 * GIB),
	    (uintmax_t)inactive);
}

static inline void put_v1(const char *membership)
{
	put("/proc/self/mountinfo",
	    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
	    "32 31 0:29 / /sys/fs/cgroup/cpu rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n"
	    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:2 - cgroup cgroup rw,memory\n");
	put("/proc/self/cgroup", "9:name=systemd:/elsewhere\n4:memory:%s\n1:cpu:/other\n",
	    membership);
}

static inline void put_v1_level(const char *folder, uint64_t limit, uint64_t used,
				uint64_t inactive)
{
	char path[768];

	put_number(folder, "memory.limit_in_bytes", limit);
	put_number(folder, "memory.usage_in_bytes", used);
	put_number(folder, "memory.use_hierarchy", 1);
	snprintf(path, sizeof(path), "%s/memory.stat", folder);
	put(path,
	    "cache 1\ninactive_file %ju\nhierarchical_memory_limit 5\ntotal_inactive_file %ju\n",
	    (uintmax_t)(9 * GIB), (uintmax_t)inactive);
}

#define V1_NONE 9223372036854771712ull

static inline struct lr_headroom open_tree(void)
{
	struct lr_headroom headroom;

	CHECK_EQ(lr_headroom_open(&headroom, tree), LR_OK);
	return headroom;
}

static inline uint64_t get_in_tree(void)
{
	struct lr_headroom headroom = open_tree();
	uint64_t room = lr_headroom_get(&headroom);

	lr_headroom_close(&headroom);
	return room;
}

#endif
