// Files that are dropped or chosen, folders with all that is in them, and their way to the server in pieces.

const PIECE = 24e6; // bytes of one request, unless a single file has more
const MOST = 200; // files of one request

/** Returns [{file, name}] of what a drop event brings: files, and folders with all below them. */
export async function filesOf(transfer) {
  const entries = [...transfer.items].filter((i) => i.kind === "file").map((i) => i.webkitGetAsEntry?.() ?? i.getAsFile());
  const found = [];
  for (const entry of entries) await walk(entry, "", found);
  return found;
}

async function walk(entry, above, found) {
  if (entry instanceof File) found.push({ file: entry, name: entry.name });
  else if (entry?.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    found.push({ file, name: above + entry.name });
  } else if (entry?.isDirectory) {
    const reader = entry.createReader();
    for (;;) { // a reader gives some hundred entries at a time
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) break;
      for (const one of some) await walk(one, `${above}${entry.name}/`, found);
    }
  }
}

/** Returns [{file, name}] of an input for files or for a folder. */
export const chosen = (input) => [...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));

/** Sends files in pieces as one drop. Returns its id.
 *  `ask` sends a request; `moved(bytes, all, files)` is told how far it is; `signal` ends it. */
export async function send(ask, found, moved, signal) {
  const files = found.filter(({ name }) => !name.split("/").some((part) => part.startsWith(".")));
  if (!files.length) throw new Error("There are no files in what you dropped.");
  const all = files.reduce((sum, { file }) => sum + file.size, 0);
  const { drop } = await ask("POST", "/room/drops");
  let sent = 0;
  try {
    for (let i = 0; i < files.length;) {
      const form = new FormData();
      let bytes = 0;
      let n = 0;
      while (i + n < files.length && n < MOST && (!n || bytes + files[i + n].file.size <= PIECE)) {
        const { file, name } = files[i + n];
        form.append("files", file, name);
        bytes += file.size;
        n += 1;
      }
      if (signal.aborted) throw new Error("Stopped.");
      await ask("POST", `/room/drops/${drop}/files`, form);
      i += n;
      sent += bytes;
      moved(sent, all, i, files.length);
    }
    return drop;
  } catch (error) {
    ask("DELETE", `/room/drops/${drop}`).catch(() => {}); // else it goes by itself
    throw error;
  }
}
