/* A stand-in for libnvidia-ml.so.1: a box of GPUs that a text file describes.
 *
 * The file is named by NVML_STAND_IN and read again at every call, so that a test can change the box
 * while a program runs. One fact a line; what comes before the first `gpu` is of the whole box, what
 * comes after a `gpu` or a `mig` is of that device:
 *
 *     driver 570.124.06
 *     cuda 12080                    as NVML has it, for 12.8
 *     error FUNCTION ERROR          every call of FUNCTION (* for all) fails so; see ERRORS
 *     gpu UUID
 *     name NVIDIA H100 80GB HBM3    to the end of the line
 *     total BYTES
 *     reserved BYTES                kept by the driver
 *     used BYTES                    by programs
 *     pci BUS                       hexadecimal; its place by default
 *     capability MAJOR MINOR        9 0 by default
 *     compute-mode NUMBER           nvmlComputeMode_t
 *     numa NODE                     not supported by default
 *     cores FIRST-LAST              CPU cores next to it, may come again; not supported by default
 *     pcie INDEX LEVEL              nvmlGpuTopologyLevel_t to that GPU; by default by their NUMA nodes
 *     ecc COUNT                     uncorrected errors since the driver was loaded
 *     remapped COUNT                rows, for uncorrectable errors
 *     remapping pending|failed
 *     retiring 1                    pages wait to be retired
 *     clocks MASK                   hexadecimal, nvmlClocksEventReasons
 *     temperature DEGREES
 *     busy PERCENT                  how much it computes; not supported by default
 *     recovery NUMBER               nvmlDeviceGpuRecoveryAction_t; not supported by default
 *     mig-mode 1                    also where there is no MIG device
 *     process PID BYTES|N/A         that computes
 *     graphics PID BYTES|N/A        that draws
 *     nvlink INDEX                  one link to that GPU
 *     error FUNCTION ERROR          for calls about this device
 *     mig UUID                      a MIG device of the last gpu
 *
 * A mistake in the file ends the program with a word on stderr. Structures and numbers are nvml.h's,
 * as nvidia-ml-py 12.560 to 13.615 has them. To add a fact: a field in `struct device` and a line in
 * `read_fact`. To add a function: see nvmlDeviceGetName.
 */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_GPUS = 16, MAX_MIGS = 8, MAX_PROCESSES = 32, MAX_LINKS = 18, MAX_ERRORS = 32,
       MASK_WORDS = 4 };

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, VERSION_MISMATCH = 25,
       HANG = -1, CRASH = -2 };

static const struct { int code; const char *name, *text; } ERRORS[] = {
    {INVALID_ARGUMENT, "invalid-argument", "Invalid Argument"},
    {NOT_SUPPORTED, "not-supported", "Not Supported"},
    {4, "no-permission", "Insufficient Permissions"},
    {NOT_FOUND, "not-found", "Not Found"},
    {DRIVER_NOT_LOADED, "driver-not-loaded", "Driver Not Loaded"},
    {10, "timeout", "Timeout"},
    {13, "function-not-found", "Function Not Found"},
    {GPU_IS_LOST, "lost", "GPU is lost"},
    {16, "reset-required", "GPU requires restart"},
    {18, "mismatch", "Driver/library version mismatch"},
    {999, "unknown", "Unknown Error"},
    {HANG, "hang", ""},   /* the call never returns */
    {CRASH, "crash", ""}, /* the call ends the program by SIGSEGV */
    {UNINITIALIZED, "uninitialized", "Uninitialized"},
    {INSUFFICIENT_SIZE, "insufficient-size", "Insufficient Size"},
    {VERSION_MISMATCH, "version", "Argument Version Mismatch"},
};
enum { ERROR_COUNT = sizeof ERRORS / sizeof *ERRORS };

typedef unsigned long long bytes;
typedef void *handle;

struct failure { char function[64]; int code; };
struct failures { int count; struct failure list[MAX_ERRORS]; };
struct process { unsigned pid; bytes used; };
struct processes { unsigned count; struct process list[MAX_PROCESSES]; };

struct device {
    char uuid[96], name[96];
    bytes total, reserved, used;
    unsigned bus, capability[2], compute_mode;
    int numa, recovery, busy; /* -1: not supported */
    bytes cores[MASK_WORDS], clocks, ecc;
    unsigned remapped, remapping_pending, remapping_failed, retiring, temperature, mig_mode;
    struct processes computing, drawing;
    unsigned link_count, links[MAX_LINKS];
    int pcie[MAX_GPUS]; /* -1: by their NUMA nodes */
    struct failures failures;
};
struct gpu { struct device self; unsigned mig_count; struct device migs[MAX_MIGS]; };
struct box {
    char driver[80];
    int cuda;
    struct failures failures;
    unsigned gpu_count;
    struct gpu gpus[MAX_GPUS];
};

/* ---------------------------------------------------------------- the file */

static __thread struct box box;
static __thread struct device *current;
static int users; /* of the library: nvmlInit calls less nvmlShutdown calls */

static void wrong(const char *what, const char *line)
{
    fprintf(stderr, "nvml stand-in: %s: %s\n", what, line);
    _exit(99);
}

static bytes number(const char *text, int base, const char *line)
{
    char *end;
    bytes value = strtoull(text, &end, base);
    if (end == text || *end)
        wrong("not a number", line);
    return value;
}

static void copy(char *to, size_t size, const char *from)
{
    if (strlen(from) >= size)
        wrong("too long", from);
    strcpy(to, from);
}

static void add_failure(struct failures *to, const char *function, const char *error, const char *line)
{
    for (int i = 0; i < ERROR_COUNT; i++)
        if (!strcmp(ERRORS[i].name, error)) {
            if (to->count == MAX_ERRORS)
                wrong("too many errors", line);
            copy(to->list[to->count].function, sizeof to->list->function, function);
            to->list[to->count++].code = ERRORS[i].code;
            return;
        }
    wrong("no such error", line);
}

static void add_process(struct processes *to, const char *pid, const char *used, const char *line)
{
    if (to->count == MAX_PROCESSES)
        wrong("too many processes", line);
    struct process *process = &to->list[to->count++];
    process->pid = number(pid, 10, line);
    process->used = strcmp(used, "N/A") ? number(used, 10, line) : ~0ULL; /* NVML_VALUE_NOT_AVAILABLE */
}

static struct device *add_gpu(const char *line)
{
    if (box.gpu_count == MAX_GPUS)
        wrong("too many gpus", line);
    struct device *gpu = &box.gpus[box.gpu_count++].self;
    gpu->bus = box.gpu_count;
    gpu->capability[0] = 9;
    gpu->numa = gpu->recovery = gpu->busy = -1;
    memset(gpu->pcie, -1, sizeof gpu->pcie);
    return gpu;
}

static struct device *add_mig(const char *line)
{
    struct gpu *parent = box.gpu_count ? &box.gpus[box.gpu_count - 1] : NULL;
    if (!parent || parent->mig_count == MAX_MIGS)
        wrong("no gpu for this mig, or too many", line);
    struct device *mig = &parent->migs[parent->mig_count++];
    mig->busy = -1;
    return mig;
}

static void add_cores(struct device *to, const char *range, const char *line)
{
    unsigned first, last;
    if (sscanf(range, "%u-%u", &first, &last) != 2 || last < first || last >= MASK_WORDS * 64)
        wrong("no such cores", line);
    for (unsigned core = first; core <= last; core++)
        to->cores[core / 64] |= 1ULL << core % 64;
}

static void set_level(struct device *to, const char *index, const char *level, const char *line)
{
    bytes other = number(index, 10, line);
    if (other >= MAX_GPUS)
        wrong("no such gpu", line);
    to->pcie[other] = number(level, 10, line);
}

/* `word` is the first of the line, `a` and `b` the next two, `rest` all after the first. */
static void read_fact(const char *word, const char *a, const char *b, const char *rest, const char *line)
{
    if (!strcmp(word, "driver"))
        copy(box.driver, sizeof box.driver, a);
    else if (!strcmp(word, "cuda"))
        box.cuda = number(a, 10, line);
    else if (!strcmp(word, "error"))
        add_failure(current ? &current->failures : &box.failures, a, b, line);
    else if (!strcmp(word, "gpu") || !strcmp(word, "mig")) {
        current = *word == 'g' ? add_gpu(line) : add_mig(line);
        copy(current->uuid, sizeof current->uuid, a);
    } else if (!current)
        wrong("no gpu yet, or no such word", line);
    else if (!strcmp(word, "name"))
        copy(current->name, sizeof current->name, rest);
    else if (!strcmp(word, "total"))
        current->total = number(a, 10, line);
    else if (!strcmp(word, "reserved"))
        current->reserved = number(a, 10, line);
    else if (!strcmp(word, "used"))
        current->used = number(a, 10, line);
    else if (!strcmp(word, "pci"))
        current->bus = number(a, 16, line);
    else if (!strcmp(word, "capability")) {
        current->capability[0] = number(a, 10, line);
        current->capability[1] = number(b, 10, line);
    } else if (!strcmp(word, "compute-mode"))
        current->compute_mode = number(a, 10, line);
    else if (!strcmp(word, "numa"))
        current->numa = number(a, 10, line);
    else if (!strcmp(word, "cores"))
        add_cores(current, a, line);
    else if (!strcmp(word, "pcie"))
        set_level(current, a, b, line);
    else if (!strcmp(word, "ecc"))
        current->ecc = number(a, 10, line);
    else if (!strcmp(word, "remapped"))
        current->remapped = number(a, 10, line);
    else if (!strcmp(word, "remapping") && !strcmp(a, "pending"))
        current->remapping_pending = 1;
    else if (!strcmp(word, "remapping") && !strcmp(a, "failed"))
        current->remapping_failed = 1;
    else if (!strcmp(word, "retiring"))
        current->retiring = number(a, 10, line);
    else if (!strcmp(word, "clocks"))
        current->clocks = number(a, 16, line);
    else if (!strcmp(word, "temperature"))
        current->temperature = number(a, 10, line);
    else if (!strcmp(word, "busy"))
        current->busy = number(a, 10, line);
    else if (!strcmp(word, "recovery"))
        current->recovery = number(a, 10, line);
    else if (!strcmp(word, "mig-mode"))
        current->mig_mode = number(a, 10, line);
    else if (!strcmp(word, "process"))
        add_process(&current->computing, a, b, line);
    else if (!strcmp(word, "graphics"))
        add_process(&current->drawing, a, b, line);
    else if (!strcmp(word, "nvlink")) {
        if (current->link_count == MAX_LINKS)
            wrong("too many links", line);
        current->links[current->link_count++] = number(a, 10, line);
    } else
        wrong("no such word", line);
}

static void read_box(void)
{
    const char *path = getenv("NVML_STAND_IN");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file)
        wrong("NVML_STAND_IN names no file", path ? path : "it is not set");
    memset(&box, 0, sizeof box);
    current = NULL;
    char line[512];
    while (fgets(line, sizeof line, file)) {
        char word[64] = "", a[128] = "", b[128] = "", *rest = line;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%63s %127s %127s", word, a, b) < 1)
            continue;
        rest += strspn(rest, " ") + strlen(word);
        rest += strspn(rest, " ");
        read_fact(word, a, b, rest, line);
    }
    fclose(file);
}

/* ---------------------------------------------------------------- calls */

static int fail(int code)
{
    if (code == CRASH)
        raise(SIGSEGV);
    while (code == HANG)
        pause();
    return code;
}

static int failure_of(const struct failures *failures, const char *function)
{
    for (int i = 0; i < failures->count; i++)
        if (!strcmp(failures->list[i].function, function) || !strcmp(failures->list[i].function, "*"))
            return fail(failures->list[i].code);
    return SUCCESS;
}

static int begin(const char *function)
{
    read_box();
    if (!users)
        return UNINITIALIZED;
    return failure_of(&box.failures, function);
}

/* A handle is the address of a letter: row by GPU, the first for itself, the others for its MIGs. */
static char handles[MAX_GPUS][1 + MAX_MIGS];

static handle handle_of(unsigned gpu, unsigned place) { return &handles[gpu][place]; }
static unsigned gpu_of(handle h) { return (unsigned)((char *)h - &handles[0][0]) / (1 + MAX_MIGS); }
static unsigned place_of(handle h) { return (unsigned)((char *)h - &handles[0][0]) % (1 + MAX_MIGS); }

/* Begin a call about one device; a GPU that is no longer in the file is lost. */
static int begin_device(const char *function, handle h, struct device **device)
{
    int code = begin(function);
    if (code)
        return code;
    if ((char *)h < &handles[0][0] || (char *)h >= &handles[0][0] + sizeof handles)
        return INVALID_ARGUMENT;
    if (gpu_of(h) >= box.gpu_count || place_of(h) > box.gpus[gpu_of(h)].mig_count)
        return GPU_IS_LOST;
    struct gpu *gpu = &box.gpus[gpu_of(h)];
    *device = place_of(h) ? &gpu->migs[place_of(h) - 1] : &gpu->self;
    code = failure_of(&gpu->self.failures, function);
    return code ? code : failure_of(&(*device)->failures, function);
}

#define BEGIN()                        \
    int code = begin(__func__);        \
    if (code)                          \
        return code

#define BEGIN_DEVICE(h)                                    \
    struct device *device;                                 \
    int code = begin_device(__func__, h, &device);         \
    if (code)                                              \
        return code

static int put(char *to, unsigned size, const char *text)
{
    if (strlen(text) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    read_box();
    int code = failure_of(&box.failures, "nvmlInit");
    users += !code;
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void)
{
    BEGIN();
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int code)
{
    for (int i = 0; i < ERROR_COUNT; i++)
        if (ERRORS[i].code == code)
            return ERRORS[i].text;
    return code ? "Unknown Error" : "Success";
}

int nvmlSystemGetDriverVersion(char *version, unsigned size)
{
    BEGIN();
    return put(version, size, *box.driver ? box.driver : "570.124.06");
}

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    BEGIN();
    *version = box.cuda ? box.cuda : 12080;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    BEGIN();
    *count = box.gpu_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, handle *found)
{
    BEGIN();
    if (index >= box.gpu_count)
        return INVALID_ARGUMENT;
    *found = handle_of(index, 0);
    return failure_of(&box.gpus[index].self.failures, __func__);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, handle *found)
{
    BEGIN();
    for (unsigned i = 0; i < box.gpu_count; i++)
        for (unsigned place = 0; place <= box.gpus[i].mig_count; place++) {
            struct device *device = place ? &box.gpus[i].migs[place - 1] : &box.gpus[i].self;
            if (strcmp(device->uuid, uuid))
                continue;
            *found = handle_of(i, place);
            code = failure_of(&box.gpus[i].self.failures, __func__);
            return code ? code : failure_of(&device->failures, __func__);
        }
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(handle h, unsigned *index)
{
    BEGIN_DEVICE(h);
    *index = gpu_of(h);
    return SUCCESS;
}

int nvmlDeviceGetUUID(handle h, char *uuid, unsigned size)
{
    BEGIN_DEVICE(h);
    return put(uuid, size, device->uuid);
}

int nvmlDeviceGetName(handle h, char *name, unsigned size)
{
    BEGIN_DEVICE(h);
    return put(name, size, device->name);
}

int nvmlDeviceGetCudaComputeCapability(handle h, int *major, int *minor)
{
    BEGIN_DEVICE(h);
    *major = device->capability[0];
    *minor = device->capability[1];
    return SUCCESS;
}

int nvmlDeviceGetComputeMode(handle h, unsigned *mode)
{
    BEGIN_DEVICE(h);
    *mode = device->compute_mode;
    return SUCCESS;
}

struct memory_v1 { bytes total, free, used; };
struct memory_v2 { unsigned version; bytes total, reserved, free, used; };

struct utilization { unsigned gpu, memory; };

int nvmlDeviceGetUtilizationRates(handle h, struct utilization *rates)
{
    BEGIN_DEVICE(h);
    if (device->busy < 0)
        return NOT_SUPPORTED;
    rates->gpu = device->busy;
    rates->memory = 0;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(handle h, struct memory_v1 *memory)
{
    BEGIN_DEVICE(h);
    bytes used = device->used + device->reserved;
    *memory = (struct memory_v1){device->total, device->total - used, used};
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(handle h, struct memory_v2 *memory)
{
    BEGIN_DEVICE(h);
    if (memory->version != (sizeof *memory | 2 << 24))
        return VERSION_MISMATCH;
    memory->total = device->total;
    memory->reserved = device->reserved;
    memory->used = device->used;
    memory->free = device->total - device->reserved - device->used;
    return SUCCESS;
}

struct process_info { unsigned pid; bytes used; unsigned gpu_instance, compute_instance; };

static int put_processes(const struct processes *processes, unsigned *count, struct process_info *list)
{
    unsigned room = list ? *count : 0;
    *count = processes->count;
    if (processes->count > room)
        return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < processes->count; i++)
        list[i] = (struct process_info){processes->list[i].pid, processes->list[i].used, ~0U, ~0U};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(handle h, unsigned *count, struct process_info *list)
{
    BEGIN_DEVICE(h);
    return put_processes(&device->computing, count, list);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(handle h, unsigned *count, struct process_info *list)
{
    BEGIN_DEVICE(h);
    return put_processes(&device->drawing, count, list);
}

/* ---------------------------------------------------------------- health */

/* type: 1 is uncorrected; counter: 0 is volatile. */
int nvmlDeviceGetTotalEccErrors(handle h, unsigned type, unsigned counter, bytes *count)
{
    BEGIN_DEVICE(h);
    *count = type == 1 && counter == 0 ? device->ecc : 0;
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(handle h, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed)
{
    BEGIN_DEVICE(h);
    *corrected = 0;
    *uncorrected = device->remapped;
    *pending = device->remapping_pending;
    *failed = device->remapping_failed;
    return SUCCESS;
}

int nvmlDeviceGetRetiredPagesPendingStatus(handle h, unsigned *pending)
{
    BEGIN_DEVICE(h);
    *pending = device->retiring;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(handle h, bytes *reasons)
{
    BEGIN_DEVICE(h);
    *reasons = device->clocks;
    return SUCCESS;
}

/* The older name of the same. */
int nvmlDeviceGetCurrentClocksThrottleReasons(handle h, bytes *reasons)
{
    BEGIN_DEVICE(h);
    *reasons = device->clocks;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(handle h, unsigned sensor, unsigned *degrees)
{
    BEGIN_DEVICE(h);
    if (sensor || !device->temperature)
        return NOT_SUPPORTED;
    *degrees = device->temperature;
    return SUCCESS;
}

enum { RECOVERY_ACTION = 230, UNSIGNED_INT = 1 };
struct field_value {
    unsigned id, scope;
    long long timestamp, latency;
    unsigned type;
    int code;
    union { unsigned number; bytes widest; } value;
};

int nvmlDeviceGetFieldValues(handle h, int count, struct field_value *values)
{
    BEGIN_DEVICE(h);
    for (int i = 0; i < count; i++) {
        int known = values[i].id == RECOVERY_ACTION && device->recovery >= 0;
        values[i].code = known ? SUCCESS : NOT_SUPPORTED;
        values[i].type = UNSIGNED_INT;
        values[i].value.widest = 0;
        if (known)
            values[i].value.number = device->recovery;
    }
    return SUCCESS;
}

/* ---------------------------------------------------------------- how GPUs are connected */

struct pci {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char id[32];
};

static void put_pci(const struct device *device, struct pci *pci)
{
    memset(pci, 0, sizeof *pci);
    pci->bus = device->bus;
    snprintf(pci->legacy, sizeof pci->legacy, "0000:%02X:00.0", device->bus & 0xff);
    snprintf(pci->id, sizeof pci->id, "00000000:%02X:00.0", device->bus & 0xff);
}

int nvmlDeviceGetPciInfo_v3(handle h, struct pci *pci)
{
    BEGIN_DEVICE(h);
    put_pci(device, pci);
    return SUCCESS;
}

int nvmlDeviceGetNumaNodeId(handle h, int *node)
{
    BEGIN_DEVICE(h);
    *node = device->numa;
    return device->numa < 0 ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetCpuAffinity(handle h, unsigned size, bytes *masks)
{
    BEGIN_DEVICE(h);
    bytes any = 0;
    for (unsigned i = 0; i < MASK_WORDS; i++)
        any |= device->cores[i];
    for (unsigned i = 0; i < size; i++)
        masks[i] = i < MASK_WORDS ? device->cores[i] : 0;
    return any ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetTopologyCommonAncestor(handle h, handle other, unsigned *level)
{
    BEGIN_DEVICE(h);
    if (gpu_of(other) >= box.gpu_count)
        return GPU_IS_LOST;
    int given = device->pcie[gpu_of(other)];
    int same_node = device->numa == box.gpus[gpu_of(other)].self.numa;
    *level = given >= 0 ? given : same_node ? 40 : 50; /* NODE, SYSTEM */
    return SUCCESS;
}

int nvmlDeviceGetNvLinkState(handle h, unsigned link, unsigned *active)
{
    BEGIN_DEVICE(h);
    if (!device->link_count)
        return NOT_SUPPORTED;
    if (link >= MAX_LINKS)
        return INVALID_ARGUMENT;
    *active = link < device->link_count;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(handle h, unsigned link, struct pci *pci)
{
    BEGIN_DEVICE(h);
    if (link >= device->link_count || device->links[link] >= box.gpu_count)
        return device->link_count ? INVALID_ARGUMENT : NOT_SUPPORTED;
    put_pci(&box.gpus[device->links[link]].self, pci);
    return SUCCESS;
}

/* what: 2 asks for NVLink, the others for PCI; status: 0 is yes, 5 not supported. */
int nvmlDeviceGetP2PStatus(handle h, handle other, unsigned what, unsigned *status)
{
    BEGIN_DEVICE(h);
    *status = what == 2 ? 5 : 0;
    for (unsigned i = 0; i < device->link_count; i++)
        if (device->links[i] == gpu_of(other))
            *status = 0;
    return SUCCESS;
}

/* ---------------------------------------------------------------- MIG */

int nvmlDeviceGetMigMode(handle h, unsigned *now, unsigned *pending)
{
    BEGIN_DEVICE(h);
    *now = *pending = device->mig_mode || box.gpus[gpu_of(h)].mig_count > 0;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(handle h, unsigned *count)
{
    BEGIN_DEVICE(h);
    *count = box.gpus[gpu_of(h)].mig_count ? MAX_MIGS : 0;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(handle h, unsigned index, handle *found)
{
    BEGIN_DEVICE(h);
    if (index >= box.gpus[gpu_of(h)].mig_count)
        return NOT_FOUND;
    *found = handle_of(gpu_of(h), index + 1);
    return SUCCESS;
}

int nvmlDeviceIsMigDeviceHandle(handle h, unsigned *is_mig)
{
    BEGIN_DEVICE(h);
    *is_mig = place_of(h) > 0;
    return SUCCESS;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle h, handle *parent)
{
    BEGIN_DEVICE(h);
    if (!place_of(h))
        return INVALID_ARGUMENT;
    *parent = handle_of(gpu_of(h), 0);
    return SUCCESS;
}
