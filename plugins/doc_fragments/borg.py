# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of the modules that open a Borg repository; module_utils/_borg/repository.py has them as ARGUMENTS."""

from __future__ import annotations


class ModuleDocFragment:
    """Found by ansible-doc under this name."""

    DOCUMENTATION = r"""
options:
  repository:
    description:
      - The Borg repository, a path, an C(ssh://) URL or C(user@host:path), as seen from the host where the module runs.
      - May be left out when O(archive) is written as C(REPOSITORY::NAME). E(BORG_REPO) does not count.
      - Of Borg's placeholders such as C({hostname}) none can be used.
    type: str
  passphrase:
    description:
      - Passphrase of the repository or of its key file.
      - It reaches Borg through a pipe. It is in no command line, in no environment of a process and in no result.
      - At most one of O(passphrase), O(passcommand) and O(passphrase_file) can be given. With none of them,
        E(BORG_PASSPHRASE) or E(BORG_PASSCOMMAND) of the environment in which the module runs is used, which the task
        keyword C(environment) can set.
    type: str
  passcommand:
    description:
      - Command that prints the passphrase. It is run once, without a shell, on the host where the module runs.
    type: str
  passphrase_file:
    description:
      - File on the host where the module runs that holds the passphrase. Newlines at its end do not count.
    type: path
  rsh:
    description:
      - Command with which Borg reaches an C(ssh://) repository, such as C(ssh -i /root/.ssh/backup -oBatchMode=yes).
      - The default is E(BORG_RSH) of the environment, or C(ssh -oBatchMode=yes), which fails where it would have to ask
        for a password or whether a host key is right.
    type: str
  remote_path:
    description:
      - Borg's program on the repository's host, where it is not C(borg).
    type: str
  lock:
    description:
      - Whether to take Borg's lock on the repository.
      - With V(hold), a mount keeps C(borg create), C(borg prune), C(borg delete) and C(borg compact) of everybody else
        from running for as long as it is mounted (they fail, with exit status 2), and can itself not be made while one
        of them runs. Nobody can take the archive away.
      - With V(bypass) all of them work as if there were no mount, and reading stays right whatever C(borg create),
        C(borg prune) and C(borg delete) do.
      - C(borg compact) is another matter. It removes the data of deleted archives, B(and) writes anew the segments in
        which they stood together with data of others, which may be those of the mounted archive. A mount does not know
        where these have gone. It goes on until it is asked for the first of them; then Borg 1 ends, and reading fails
        with C(Transport endpoint is not connected), here and in all of the mount. Wrong data are never read. Where the
        archive itself was not deleted, a new mount has all of it. In a session with driver C(block) its keeper makes
        one, and clients only wait.
      - V(auto) is V(bypass). Every supported version of Borg can do so.
      - A repository that can only be read, such as a read-only file system, can only be opened without the lock.
      - Borg 1 brings its index up to date when it opens a repository whose writer has just committed, or has crashed.
        Without the lock this can coincide with the end of a C(borg create), or with C(borg compact).
    type: str
    choices: [auto, hold, bypass]
    default: auto
  bypass_lock:
    description:
      - Another way to write O(lock). V(true) is O(lock=bypass), V(false) is O(lock=hold).
    type: bool
  accept_unencrypted:
    description:
      - Whether to open an unencrypted repository that was never opened from this host by this user.
      - Borg asks about this, since somebody may have put another repository in the place of the encrypted one. The
        answer is no, unless this option is set or E(BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK) is V(yes).
    type: bool
    default: false
  accept_relocated:
    description:
      - Whether to open a repository that this user last opened, from this host, at another place.
      - Borg asks about this, too. The answer is no, unless this option is set or E(BORG_RELOCATED_REPO_ACCESS_IS_OK) is
        V(yes).
    type: bool
    default: false
  timeout:
    description:
      - Seconds that each run of Borg may take, until it has mounted in the case of a mount.
    type: float
    default: 1800
requirements:
  - borg 1.2 or 1.4
"""
