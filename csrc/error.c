#include "error.h"

#include <errno.h>

struct error_text {
	int code;
	const char *name;
	const char *text;
};

#define ENTRY(code, text) {code, #code, text}

static const struct error_text texts[] = {
	ENTRY(LR_OK, "no error"),
	ENTRY(LR_ERR_ARGUMENT, "an argument is out of its range"),
	ENTRY(LR_ERR_NOMEM, "out of memory or address space"),
	ENTRY(LR_ERR_IO, "reading failed"),
	ENTRY(LR_ERR_NOT_FOUND, "there is no such file, process or region"),
	ENTRY(LR_ERR_PERMISSION, "the kernel refused: a right is missing"),
	ENTRY(LR_ERR_UNSUPPORTED, "the kernel lacks something that is needed"),
	ENTRY(LR_ERR_BUSY, "the address range is taken"),
	ENTRY(LR_ERR_TIMEOUT, "not done before the deadline"),
	ENTRY(LR_ERR_NO_ZSTD, "libzstd.so.1 could not be loaded"),
	ENTRY(LR_ERR_SYSTEM, "a system call failed"),
	ENTRY(LR_ERR_GONE, "the process ended, or its memory is gone"),
	ENTRY(LR_ERR_LIMIT, "a limit was reached: file descriptors, mappings or threads"),
	ENTRY(LR_ERR_CLOSED, "the region is closed"),
	ENTRY(LR_ERR_PAGE_SIZE, "this kernel's pages are larger than the image's clusters"),
	ENTRY(LR_ERR_STATE, "the peer's state is damaged, or belongs to another image"),
	ENTRY(LR_ERR_REFUSED, "the service refused"),
	ENTRY(LR_ERR_PROTOCOL, "what answers at that socket is not a lazyrestore service"),
	ENTRY(LR_ERR_EMPTY, "the file is empty"),
	ENTRY(LR_ERR_MAGIC, "not a lazyrestore image"),
	ENTRY(LR_ERR_TRUNCATED, "the image is cut short, or was never finished"),
	ENTRY(LR_ERR_FOOTER, "the image's footer is damaged"),
	ENTRY(LR_ERR_VERSION, "the image was made by a newer version"),
	ENTRY(LR_ERR_FEATURE, "the image uses a feature that this version does not know"),
	ENTRY(LR_ERR_HEADER, "the image's header is damaged"),
	ENTRY(LR_ERR_ROOT, "the image's root is damaged"),
	ENTRY(LR_ERR_METADATA, "the image's metadata is damaged"),
	ENTRY(LR_ERR_NODE, "an index node of the image is damaged"),
	ENTRY(LR_ERR_ENTRY, "an index entry of the image is damaged"),
	ENTRY(LR_ERR_SHORT, "the image ended too early: the file shrank"),
	ENTRY(LR_ERR_CHECKSUM, "a cluster's checksum is wrong"),
	ENTRY(LR_ERR_FRAME, "a cluster's zstd frame does not decode to what it should"),
	ENTRY(LR_ERR_FILES, "the image's record of files is damaged"),
};

static const struct error_text *find_text(int code)
{
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if (texts[i].code == code)
			return &texts[i];
	return NULL;
}

const char *lr_strerror(int code)
{
	const struct error_text *found = find_text(code < 0 ? code : LR_OK);

	return found ? found->text : "unknown error";
}

const char *lr_error_name(int code)
{
	const struct error_text *found = find_text(code < 0 ? code : LR_OK);

	return found ? found->name : "LR_ERR_UNKNOWN";
}

int lr_problem_set(struct lr_problem *problem, int code, int os_error, uint64_t cluster,
		   uint64_t file_offset)
{
	if (problem)
		*problem = (struct lr_problem){
			.code = code,
			.os_error = os_error,
			.cluster = cluster,
			.file_offset = file_offset,
		};
	return code;
}

static int code_from_errno(int os_error)
{
	switch (os_error) {
	case EPERM:
	case EACCES:
		return LR_ERR_PERMISSION;
	case ENOMEM:
		return LR_ERR_NOMEM;
	case ENOENT:
	case ENOTDIR:
		return LR_ERR_NOT_FOUND;
	case EMFILE:
	case ENFILE:
	case EAGAIN:
		return LR_ERR_LIMIT;
	case ENOSYS:
	case ENOTTY:
		return LR_ERR_UNSUPPORTED;
	case EBUSY:
	case EEXIST:
		return LR_ERR_BUSY;
	case ESRCH:
		return LR_ERR_GONE;
	case EIO:
	case EISDIR:
	case ESPIPE:
	case ESTALE:
	case ELOOP:
		return LR_ERR_IO;
	default:
		return LR_ERR_SYSTEM;
	}
}

int lr_problem_from_errno(struct lr_problem *problem, int os_error)
{
	return lr_problem_set(problem, code_from_errno(os_error), os_error, LR_NOWHERE, LR_NOWHERE);
}
