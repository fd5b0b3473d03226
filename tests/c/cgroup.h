/*
 * cgroup: a memory cgroup with a limit, v1 or v2, for processes that a test forks. Include after
 * check.h. Where none can be made the case is skipped, and says why.
 */
#ifndef LR_TESTS_CGROUP_H
#define LR_TESTS_CGROUP_H

#include "check.h"

#include <fcntl.h>
#include <sys/stat.h>

struct cgroup {
	char folder[400];
	int is_v1;
	int limit, usage; /* open: at the limit even open() may find no memory */
};

/* 0, or errno. */
static inline int cgroup_try_write(const char *folder, const char *name, const char *value)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int error = fd == -1 || write(fd, value, strlen(value)) == -1 ? errno : 0;
	if (fd != -1)
		close(fd);
	return error;
}

static inline int cgroup_open(const struct cgroup *cgroup, const char *v1, const char *v2, int mode)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", cgroup->folder, cgroup->is_v1 ? v1 : v2);
	return (int)CHECK_CALL(open(path, mode | O_CLOEXEC));
}

static inline uint64_t cgroup_used(const struct cgroup *cgroup)
{
	char text[32] = "";

	CHECK(pread(cgroup->usage, text, sizeof(text) - 1, 0) > 0);
	return strtoull(text, NULL, 10);
}

static inline void cgroup_set_limit(const struct cgroup *cgroup, uint64_t limit)
{
	char text[32];
	int length = snprintf(text, sizeof(text), "%ju", (uintmax_t)limit);

	CHECK_EQ(CHECK_CALL(pwrite(cgroup->limit, text, (size_t)length, 0)), length);
}

/* Where this process is in the hierarchy that limits memory. */
static inline int cgroup_find_own(char *ret_path, size_t room)
{
	char line[512];
	int is_v1 = 0;
	FILE *file = fopen("/proc/self/cgroup", "re");

	snprintf(ret_path, room, "/");
	while (file && fgets(line, sizeof(line), file)) {
		char *controllers = strchr(line, ':') + 1, *path = strchr(controllers, ':');
		*strchr(path, '\n') = '\0';
		*path++ = '\0';
		if (strstr(controllers, "memory") || (controllers[0] == '\0' && !is_v1)) {
			is_v1 = controllers[0] != '\0';
			snprintf(ret_path, room, "%s", path);
		}
	}
	if (file)
		fclose(file);
	return is_v1;
}

static inline int cgroup_try_make(struct cgroup *cgroup, const char *path)
{
	char parent[300];

	snprintf(parent, sizeof(parent), "/sys/fs/cgroup%s%s", cgroup->is_v1 ? "/memory" : "",
		 strcmp(path, "/") == 0 ? "" : path);
	if (!cgroup->is_v1)
		cgroup_try_write(parent, "cgroup.subtree_control", "+memory");
	snprintf(cgroup->folder, sizeof(cgroup->folder), "%s/lr-test-%d", parent, (int)getpid());
	rmdir(cgroup->folder); /* of a process that was killed, and had this number */
	if (mkdir(cgroup->folder, 0755) == -1)
		return errno;
	int error = cgroup->is_v1 ? cgroup_try_write(cgroup->folder, "memory.limit_in_bytes", "-1")
				  : cgroup_try_write(cgroup->folder, "memory.max", "max");
	if (error)
		rmdir(cgroup->folder);
	return error;
}

/* In v2 a cgroup that has processes cannot have children with a limit: some ancestor then. */
static inline void cgroup_make(struct cgroup *cgroup, uint64_t limit)
{
	char path[200];
	int error;

	cgroup->is_v1 = cgroup_find_own(path, sizeof(path));
	while ((error = cgroup_try_make(cgroup, path)) != 0 && strcmp(path, "/") != 0) {
		char *last = strrchr(path, '/');
		last[last == path] = '\0';
	}
	if (error)
		SKIP("no cgroup with a memory limit: %s: %s", cgroup->folder, strerror(error));
	cgroup->limit = cgroup_open(cgroup, "memory.limit_in_bytes", "memory.max", O_WRONLY);
	cgroup->usage = cgroup_open(cgroup, "memory.usage_in_bytes", "memory.current", O_RDONLY);
	cgroup_set_limit(cgroup, limit);
	cgroup_try_write(cgroup->folder, cgroup->is_v1 ? "memory.swappiness" : "memory.swap.max",
			 "0");
}

/* For a child of the case, early on: what it allocates from here on counts. With has_killer == 0
 * what finds no memory fails, or waits, and nobody is killed. */
static inline void cgroup_enter(const struct cgroup *cgroup, int has_killer)
{
	if (!has_killer && cgroup->is_v1)
		CHECK_EQ(cgroup_try_write(cgroup->folder, "memory.oom_control", "1"), 0);
	if (!has_killer && !cgroup->is_v1)
		CHECK_EQ(cgroup_try_write("/proc/self", "oom_score_adj", "-1000"), 0);
	CHECK_EQ(cgroup_try_write(cgroup->folder, "cgroup.procs", "0"), 0);
}

/* When its processes have ended. The kernel may need a moment to see that. */
static inline void cgroup_remove(const struct cgroup *cgroup)
{
	close(cgroup->limit);
	close(cgroup->usage);
	for (int tries = 0; rmdir(cgroup->folder) == -1 && tries < 100; tries++)
		usleep(50 * 1000);
}

#endif
