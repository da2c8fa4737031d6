/* A stand-in for libnvidia-ml.so.1, scripted by the text file that $FAKE_NVML names.
 *
 * The file is read again at every call, so a test changes the machine by replacing it. One "word value" a line:
 *
 *   driver 570.86.15            cuda 12080
 *   gpu                         begins a GPU; what follows is about it
 *   uuid GPU-...   name ...   pci 00000000:01:00.0   capability 8 0
 *   total N   reserved N   used N          bytes
 *   utilization 7               percent; without it, not supported
 *   mig 0                       without it, not supported
 *   compute PID N   graphics PID N         a process; N of -1: the driver doesn't tell its memory
 *   fail FUNCTION CODE          the call returns that nvmlReturn_t; FUNCTION may be "*"
 *   hang FUNCTION               the call doesn't return while the file says so
 *
 * "fail" and "hang" before the first "gpu" are about calls without a device. Struct layouts and codes are nvml.h's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };
enum { DRIVER_NOT_LOADED = 9, MAX_GPUS = 16, MAX_ITEMS = 32, WORD = 96 };
typedef unsigned long long bytes;

typedef struct { unsigned int version; bytes total, reserved, free, used; } memory_v2;
typedef struct { bytes total, free, used; } memory_v1;
typedef struct { unsigned int pid; bytes memory; unsigned int gpu_instance, compute_instance; } process;
typedef struct { unsigned int gpu, memory; } load;
typedef struct {
    char legacy[16];
    unsigned int domain, bus, device, pci_device, pci_subsystem;
    char id[32];
} pci;

typedef struct { char function[WORD]; int code; } rule; /* a code of -1 hangs */
typedef struct { int graphics; unsigned int pid; long long memory; } user;

typedef struct {
    char uuid[WORD], name[WORD], pci[WORD];
    int major, minor, utilization, mig, rules, users;
    bytes total, reserved, used;
    rule rule[MAX_ITEMS];
    user user[MAX_ITEMS];
} gpu;

typedef struct {
    char driver[WORD];
    int cuda, gpus;
    gpu system, gpu[MAX_GPUS]; /* of "system" only the rules are used */
} machine;

static int opened;

static void read_line(machine *m, char *line) {
    gpu *g = m->gpus ? &m->gpu[m->gpus - 1] : &m->system;
    rule *r = &g->rule[g->rules % MAX_ITEMS];
    user *u = &g->user[g->users % MAX_ITEMS];
    char *value = strchr(line, ' ');
    line[strcspn(line, "\n")] = 0;
    if (!strcmp(line, "gpu") && m->gpus < MAX_GPUS) {
        g = &m->gpu[m->gpus++];
        g->mig = g->utilization = -1;
    }
    if (!value) return;
    *value++ = 0;
    if (!strcmp(line, "driver")) snprintf(m->driver, WORD, "%s", value);
    if (!strcmp(line, "cuda")) m->cuda = atoi(value);
    if (!strcmp(line, "uuid")) snprintf(g->uuid, WORD, "%s", value);
    if (!strcmp(line, "name")) snprintf(g->name, WORD, "%s", value);
    if (!strcmp(line, "pci")) snprintf(g->pci, WORD, "%s", value);
    if (!strcmp(line, "capability")) sscanf(value, "%d %d", &g->major, &g->minor);
    if (!strcmp(line, "total")) g->total = strtoull(value, NULL, 10);
    if (!strcmp(line, "reserved")) g->reserved = strtoull(value, NULL, 10);
    if (!strcmp(line, "used")) g->used = strtoull(value, NULL, 10);
    if (!strcmp(line, "utilization")) g->utilization = atoi(value);
    if (!strcmp(line, "mig")) g->mig = atoi(value);
    if (!strcmp(line, "fail") && sscanf(value, "%95s %d", r->function, &r->code) == 2) g->rules++;
    if (!strcmp(line, "hang") && sscanf(value, "%95s", r->function) == 1) r->code = -1, g->rules++;
    u->graphics = !strcmp(line, "graphics");
    if ((u->graphics || !strcmp(line, "compute")) && sscanf(value, "%u %lld", &u->pid, &u->memory) == 2)
        g->users++;
}

static int read_machine(machine *m) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[4 * WORD];
    memset(m, 0, sizeof *m);
    if (!file) return DRIVER_NOT_LOADED;
    while (fgets(line, sizeof line, file)) read_line(m, line);
    fclose(file);
    return SUCCESS;
}

/* Every call begins here: reads the machine and says what the call returns, if that isn't its answer.
 * A device handle is its index plus 1; NULL is a call about the system. */
static int begin(machine *m, const void *device, gpu **g, const char *function) {
    for (;;) {
        int failed = read_machine(m), hangs = 0;
        size_t index = (size_t)device;
        if (failed) return failed;
        if (index > (size_t)m->gpus) return INVALID_ARGUMENT;
        *g = index ? &m->gpu[index - 1] : &m->system;
        for (int i = 0; i < (*g)->rules; i++) {
            rule *r = &(*g)->rule[i];
            if (strcmp(r->function, function) && strcmp(r->function, "*")) continue;
            if (r->code >= 0) return r->code;
            hangs = 1;
        }
        if (!hangs) return opened || !strncmp(function, "nvmlInit", 8) ? SUCCESS : UNINITIALIZED;
        usleep(5000);
    }
}

#define BEGIN(device)                                        \
    machine m;                                               \
    gpu *g = NULL;                                           \
    int failed = begin(&m, device, &g, __func__);            \
    if (failed) return failed
#define COPY(target, size, text) return snprintf(target, size, "%s", text) < (int)(size) ? SUCCESS : INSUFFICIENT_SIZE

int nvmlInitWithFlags(unsigned int flags) {
    BEGIN(NULL);
    (void)flags;
    opened++;
    return SUCCESS;
}

int nvmlShutdown(void) {
    BEGIN(NULL);
    opened--;
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *version, unsigned int size) {
    BEGIN(NULL);
    COPY(version, size, m.driver);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    BEGIN(NULL);
    *version = m.cuda;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    BEGIN(NULL);
    *count = (unsigned int)m.gpus;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    BEGIN((void *)(size_t)(index + 1));
    *device = (void *)(size_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned int size) {
    BEGIN(device);
    COPY(uuid, size, g->uuid);
}

int nvmlDeviceGetName(void *device, char *name, unsigned int size) {
    BEGIN(device);
    COPY(name, size, g->name);
}

int nvmlDeviceGetPciInfo_v3(void *device, pci *info) {
    BEGIN(device);
    memset(info, 0, sizeof *info);
    COPY(info->id, sizeof info->id, g->pci);
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    BEGIN(device);
    *major = g->major;
    *minor = g->minor;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *info) {
    BEGIN(device);
    if (info->version != (sizeof *info | 2 << 24)) return INVALID_ARGUMENT;
    info->total = g->total;
    info->reserved = g->reserved;
    info->used = g->used;
    info->free = g->total - g->reserved - g->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_v1 *info) {
    BEGIN(device);
    info->total = g->total;
    info->used = g->reserved + g->used;
    info->free = info->total - info->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, load *rates) {
    BEGIN(device);
    if (g->utilization < 0) return NOT_SUPPORTED;
    rates->gpu = (unsigned int)g->utilization;
    rates->memory = 0;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending) {
    BEGIN(device);
    if (g->mig < 0) return NOT_SUPPORTED;
    *current = *pending = (unsigned int)g->mig;
    return SUCCESS;
}

static int processes(const gpu *g, int graphics, unsigned int *count, process *list) {
    unsigned int room = *count;
    *count = 0;
    for (int i = 0; i < g->users; i++) {
        if (g->user[i].graphics != graphics) continue;
        if (*count < room)
            list[*count] = (process){g->user[i].pid, (bytes)g->user[i].memory, ~0u, ~0u};
        ++*count;
    }
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process *list) {
    BEGIN(device);
    return processes(g, 0, count, list);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned int *count, process *list) {
    BEGIN(device);
    return processes(g, 1, count, list);
}

const char *nvmlErrorString(int code) {
    static _Thread_local char text[WORD];
    snprintf(text, sizeof text, "fake NVML error %d", code);
    return text;
}
