// Files and folders that are dropped or chosen, sent in pieces. Knows no page.

import { Failed, send, sendForm } from "./api.js";

const AT_ONCE = 64; // files of a request
const BYTES = 24e6; // and their bytes, unless one file alone is larger

/** All files of a drop event, with the folders that they lay in: [{file, name}]. */
export async function dropped(transfer) {
  const entries = [...transfer.items].filter((i) => i.kind === "file").map((i) => i.webkitGetAsEntry?.() ?? i.getAsFile());
  const found = [];
  const walk = async (entry, path) => {
    if (entry instanceof File) found.push({ file: entry, name: entry.name });
    else if (entry?.isFile) {
      const file = await new Promise((yes, no) => entry.file(yes, no));
      found.push({ file, name: path + entry.name });
    } else if (entry?.isDirectory) {
      const reader = entry.createReader();
      for (;;) { // a hundred at a time, until none is left
        const some = await new Promise((yes, no) => reader.readEntries(yes, no));
        if (!some.length) break;
        for (const one of some) await walk(one, `${path}${entry.name}/`);
      }
    }
  };
  for (const entry of entries) if (entry) await walk(entry, "");
  return found.filter(({ name }) => !hiddenFile(name));
}

/** The files of an input, with their folders. */
export const chosen = (input) =>
  [...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name })).filter(({ name }) => !hiddenFile(name));

const hiddenFile = (name) => /(^|\/)(\.[^/]*|Thumbs\.db|desktop\.ini)$/i.test(name);

/** Sends files, and returns the drop's id. `told(sent, all, files, of)` hears of progress in bytes and files; `signal` stops it.
 *  `problem(name, error)` hears of each file that was refused. */
export async function upload(files, { told, problem, signal }) {
  if (!files.length) throw new Failed(400, "There are no files in what you dropped.");
  const { drop } = await send("POST", "/room/drops");
  const all = files.reduce((sum, { file }) => sum + file.size, 0);
  let sent = 0;
  try {
    for (let i = 0; i < files.length;) {
      const form = new FormData();
      let size = 0, n = 0;
      do {
        form.append("files", files[i].file, files[i].name);
        size += files[i].file.size;
        i++;
        n++;
      } while (i < files.length && n < AT_ONCE && size + files[i].file.size <= BYTES);
      const { problems } = await sendForm(`/room/drops/${drop}/files`, form, signal);
      for (const { name, error } of problems ?? []) problem(name, error);
      sent += size;
      told(sent, all, i, files.length);
    }
  } catch (error) {
    await send("DELETE", `/room/drops/${drop}`).catch(() => null); // what came is of no use
    throw error;
  }
  return drop;
}
