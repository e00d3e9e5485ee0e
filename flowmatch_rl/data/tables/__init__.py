from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.data.tables.datasets import Dataset, DensityTable
    from flowmatch_rl.data.tables.reading import TableFile, read_table
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = ["Dataset", "DensityTable", "TableFile", "read_table"]
