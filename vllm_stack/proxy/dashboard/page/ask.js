// Questions to the admin door, which this page came from.

const PATIENCE = 5000; // ms

/** The proxy did not answer in time, or with anything of use. */
export class Away extends Error {}

/** Get a page of the door as text; throws `Away`. */
export async function get(path) {
  try {
    const signal = AbortSignal.timeout(PATIENCE);
    const answer = await fetch(path, { credentials: "omit", redirect: "error", signal });
    if (answer.ok) return await answer.text();
    throw new Away(`${path}: ${answer.status}`);
  } catch (error) {
    throw error instanceof Away ? error : new Away(String(error));
  }
}

/** Get a page of the door as a value; throws `Away`. */
export async function getValue(path) {
  const text = await get(path);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Away(`${path}: ${error}`);
  }
}
