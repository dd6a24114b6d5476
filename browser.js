// Stands where the SDK's module will: a browser without it has no key of its own.
export async function refresh() {
  return false
}
