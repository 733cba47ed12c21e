// libnvidia-ml.so.1 as far as the agent asks it: one GPU that answers fixed numbers. Emulated: it shows that calls arrive.
#include <cstring>

extern "C" {

typedef struct Device* Handle;
static int one;

int nvmlInit_v2() { return 0; }

int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = 2;
  return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle* device) {
  *device = reinterpret_cast<Handle>(&one);
  return index == 0 ? 0 : 4;  // the second is another user's: NVML_ERROR_NO_PERMISSION
}

static bool known(Handle device) { return device == reinterpret_cast<Handle>(&one); }

int nvmlDeviceGetPowerUsage(Handle device, unsigned* milliwatt) {
  *milliwatt = 61500;
  return known(device) ? 0 : 2;
}

int nvmlDeviceGetTotalEnergyConsumption(Handle device, unsigned long long* millijoule) {
  *millijoule = 5000000000000ull;  // needs more than 32 bits
  return known(device) ? 0 : 2;
}

int nvmlDeviceGetTemperature(Handle device, int sensor, unsigned* celsius) {
  *celsius = 54;
  return known(device) && sensor == 0 ? 0 : 2;
}

int nvmlDeviceGetClockInfo(Handle device, int type, unsigned* mhz) {
  *mhz = 1980;
  return known(device) && type == 1 ? 0 : 2;
}

}  // nvmlDeviceGetCurrentClocksThrottleReasons is missing, as in an old driver
